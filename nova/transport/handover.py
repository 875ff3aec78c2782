"""How two processes of one machine come to share memory: addresses, who may, and what is sent on the socket.

    initiator                                     responder, who listens on a Unix socket
        "NOVASHM", version, longest ring it takes  ->          each looks at the other's credentials first
                      <-  "NOVASHM", version, ring bytes, and the memory's descriptor (SCM_RIGHTS)

From then on the session's bytes go through the rings, and the socket carries nothing but wake-ups, and the end: it ends
when either process does, however it does.

The memory is the responder's to make, so that strangers cannot have it map what they like. It is sealed: its size can
never change, because who reads behind the end of shared memory that was cut is killed by the kernel (SIGBUS). The
initiator takes nothing but sealed memory of the announced size.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Collection
from typing import NamedTuple

from nova._native.shm import RING_BYTES_MIN, map_bytes
from nova.errors import NovaError, PeerError, UnavailableError, UsageError

RING_BYTES = 1 << 20
RING_BYTES_MAX = 1 << 30
MEMORY_BYTES_MAX = 256 << 20
GREETING = struct.Struct(">7sBQ")
MAGIC = b"NOVASHM"
VERSION = 1
REFUSED, NOT_NOW = 0, 1
"""In place of the ring's size, with the reason behind it."""
REASON_BYTES_MAX = 512
PATH_BYTES_MAX = 107
BACKLOG = 256
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Credentials(NamedTuple):
    """Whom the kernel says the socket leads to. pid is 0 if it lives where we cannot see processes."""

    pid: int
    uid: int


def socket_name(address: str) -> str:
    """What `bind` and `connect` take for a path, or for ``@name`` (no file; ``@`` picks one). Raises UsageError."""
    if address.startswith("@"):
        name = "\0" + address[1:] if address != "@" else ""
    elif address.startswith("/"):
        name = address
    else:
        raise UsageError(
            f"address {address!r} is neither a path from the root nor @name; for example /run/nova.sock or @nova"
        )
    if len(os.fsencode(name)) > PATH_BYTES_MAX:
        raise UsageError(
            f"address {address!r} has {len(os.fsencode(name))} bytes; a Unix socket's name has {PATH_BYTES_MAX} at "
            f"most: choose a shorter path, or @name"
        )
    return name


def address_of(sock: socket.socket) -> str:
    name = sock.getsockname()
    text = os.fsdecode(name)
    return "@" + text[1:] if text.startswith("\0") else text


def check_ring(ring_bytes: int) -> int:
    """Raises UsageError for a size that no ring has."""
    if not RING_BYTES_MIN <= ring_bytes <= RING_BYTES_MAX or ring_bytes & (ring_bytes - 1):
        raise UsageError(f"ring_bytes is {ring_bytes}; it is a power of two from {RING_BYTES_MIN} to {RING_BYTES_MAX}")
    return ring_bytes


# -- the listening socket --------------------------------------------------------------------------------------------


def bind(address: str) -> socket.socket:
    """A socket that listens, its file for this user only. Raises UsageError, also if somebody listens there already.

    A file that a listener left behind, who died, is replaced.
    """
    name = socket_name(address)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _left_behind(name):
                raise
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            sock.bind(name)
        if name.startswith("/"):
            os.chmod(name, 0o600)  # nobody can connect before `listen`
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"address {address} is in use: stop whoever listens there or choose another name"
            ) from None
        raise UsageError(
            f"cannot listen on {address}: {plain(error)}; choose a path in a directory that this user may write"
        ) from None
    except BaseException:
        sock.close()
        raise
    return sock


def _left_behind(name: str) -> bool:
    """Is it the file of a socket on which nobody listens?"""
    try:
        if not name.startswith("/") or not stat.S_ISSOCK(os.lstat(name).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(name)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def unbind(sock: socket.socket) -> None:
    """Close a listening socket, and remove its file if it is still that. May be called twice."""
    if sock.fileno() < 0:
        return
    name = sock.getsockname()
    sock.close()
    if isinstance(name, str) and name.startswith("/") and _left_behind(name):
        with contextlib.suppress(OSError):
            os.unlink(name)


# -- who may ---------------------------------------------------------------------------------------------------------


def credentials(sock: socket.socket) -> Credentials:
    """Of the process at the other end, when it connected or began to listen."""
    pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Credentials(pid, uid)


def check_user(sock: socket.socket, uids: Collection[int] | None) -> Credentials:
    """Raises PeerError unless the other end runs as this user, as root, or as one of `uids`."""
    peer = credentials(sock)
    if peer.uid in (os.geteuid(), 0) or (uids is not None and peer.uid in uids):
        return peer
    raise PeerError(
        f"the other end, process {peer.pid}, runs as user {peer.uid}; here user {os.geteuid()} and root are let in: "
        f"name others in uids="
    )


# -- memory ----------------------------------------------------------------------------------------------------------


def make_memory(ring_bytes: int) -> int:
    """A descriptor of sealed memory for two rings, all of it there. Raises UnavailableError if there is not so much."""
    size = map_bytes(ring_bytes)
    memory = os.memfd_create("nova-shm", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, size)
        os.posix_fallocate(memory, 0, size)
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
    except OSError as error:
        os.close(memory)
        raise UnavailableError(
            f"no {size} bytes of shared memory: {plain(error)}; choose a smaller ring_bytes, or free memory"
        ) from None
    return memory


def check_memory(memory: int, ring_bytes: int) -> None:
    """Raises PeerError unless the descriptor is sealed memory, of the size that two such rings take."""
    try:
        seals = fcntl.fcntl(memory, fcntl.F_GET_SEALS)
        found = os.fstat(memory)
        kind = os.statvfs(memory)
    except OSError as error:
        raise PeerError(f"what the other end sent is no shared memory: {plain(error)}") from None
    if not stat.S_ISREG(found.st_mode) or kind.f_bsize != os.sysconf("SC_PAGESIZE"):
        raise PeerError("what the other end sent is no plain shared memory")
    if seals & SEALS != SEALS:
        raise PeerError(f"the other end's memory is not sealed (seals {seals:#x}): it could be cut under our feet")
    if found.st_size != map_bytes(ring_bytes):
        raise PeerError(
            f"the other end's memory has {found.st_size} bytes; rings of {ring_bytes} take {map_bytes(ring_bytes)}"
        )


# -- what is said ----------------------------------------------------------------------------------------------------


def greeting(ring_bytes: int) -> bytes:
    return GREETING.pack(MAGIC, VERSION, ring_bytes)


def parse_greeting(data: bytes) -> int:
    """The longest ring that the initiator takes. Raises PeerError."""
    return _parse(data)


def _parse(data: bytes) -> int:
    if len(data) < GREETING.size:
        raise PeerError("the other end hung up before it had said what memory to share")
    magic, version, value = GREETING.unpack_from(data)
    if magic != MAGIC:
        raise PeerError(f"bytes {data[:7]!r} greet nobody: not a nova peer")
    if version != VERSION:
        raise PeerError(f"the other end shares memory by version {version}, this one by {VERSION}: upgrade the older")
    size: int = value
    return size


def agree(own: int, theirs: int) -> int:
    """The size of the rings, if ours would be `own`, and the other end takes no more than `theirs`."""
    if theirs < RING_BYTES_MIN:
        raise PeerError(f"the other end takes rings of {theirs} bytes at most; {RING_BYTES_MIN} are needed")
    return min(own, 1 << (theirs.bit_length() - 1))


def send_memory(sock: socket.socket, memory: int, ring_bytes: int) -> None:
    """Hand the memory over. Raises OSError."""
    socket.send_fds(sock, [greeting(ring_bytes)], [memory])


def send_refusal(sock: socket.socket, error: NovaError) -> None:
    """Tell why there is none, if it can be told at once."""
    word = NOT_NOW if isinstance(error, UnavailableError) else REFUSED
    with contextlib.suppress(OSError):
        sock.send(greeting(word) + str(error).encode()[:REASON_BYTES_MAX], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def receive_memory(sock: socket.socket, ring_bytes_max: int) -> tuple[int, int]:
    """The descriptor and the size of the rings, checked, from a socket that has the answer.

    raises  PeerError, also if the other end refuses; UnavailableError if it does for now; OSError
    """
    data, memories, flags, _ = socket.recv_fds(sock, GREETING.size + REASON_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
    try:
        value = _parse(data)
        if value in (REFUSED, NOT_NOW):
            text = data[GREETING.size :].decode("utf-8", "replace")
            text = "".join(c if c.isprintable() else "?" for c in text)
            if value == NOT_NOW:
                raise UnavailableError(f"refused by the peer: {text}")
            raise PeerError(f"refused by the peer: {text}")
        if len(memories) != 1 or flags & socket.MSG_CTRUNC:
            raise PeerError(f"the other end sent {len(memories)} descriptors; one, of the memory, belongs here")
        if not RING_BYTES_MIN <= value <= ring_bytes_max or value & (value - 1):
            raise PeerError(f"the other end has rings of {value} bytes; this one takes up to {ring_bytes_max}")
        check_memory(memories[0], value)
    except BaseException:
        for memory in memories:
            os.close(memory)
        raise
    return memories[0], value


def plain(error: OSError) -> str:
    """Why a call failed, in a few words."""
    return (error.strerror or str(error)).lower()

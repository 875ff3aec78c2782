"""Keys of subjects, so that what was sealed for one can be made unreadable everywhere by destroying one key.

An append-only trail, its replicas, exports and backups cannot be combed for a person's data; without the key they hold
noise (crypto-shredding). A key is a slot of 512 bytes in one file, overwritten in place and synced when it is
destroyed. What the medium keeps below the file system (snapshots, worn flash cells) is out of reach from here, and so
is every copy of this file: leave it out of backups, or keep those as short as the law wants.

A slot: 4 bytes magic and version, 16 bytes key id, 32 bytes key, 2 bytes length of the subject, the subject, zeros, and
4 bytes CRC32C over everything before. All zeros: free.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Final

from nova.crypto import aead
from nova.errors import CorruptionError, LimitError, UnavailableError
from nova.storage.log import DirectoryLock, crc32c, sync_directory

SLOT_BYTES: Final = 512
SUBJECT_BYTES_MAX: Final = 400
MAGIC: Final = b"NSK\x01"

_HEAD: Final = struct.Struct("<4s16s32sH")
_NONCE_BYTES: Final = 12


class SubjectKeys:
    """The `Vault` of nova.conflict.audit in one directory, made if it is missing; AES-256-GCM by `cryptography`.

    raises  NovaError if `cryptography` is not installed; UsageError if another process has the directory open;
            CorruptionError for a damaged slot
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._aead = aead("sealing")
        self.directory = Path(directory)
        made = not self.directory.exists()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = DirectoryLock(self.directory)
        self._slots: dict[str, tuple[int, str, bytes]] = {}  # subject -> (slot, key id, key)
        self._keys: dict[str, bytes] = {}
        self._free: list[int] = []
        self._fd = os.open(self.directory / "keys", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._load()
            if made:
                sync_directory(self.directory.parent)
            sync_directory(self.directory)
        except BaseException:
            self.close()
            raise

    def _load(self) -> None:
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        self._count = -(-len(data) // SLOT_BYTES)
        for number in range(self._count):
            slot = data[number * SLOT_BYTES : (number + 1) * SLOT_BYTES]
            if slot.count(0) == len(slot):
                self._free.append(number)
                continue
            magic, key_id, key, size = _HEAD.unpack_from(slot.ljust(SLOT_BYTES, b"\0"))
            if len(slot) < SLOT_BYTES or magic != MAGIC or crc32c(slot[:-4]) != int.from_bytes(slot[-4:], "little"):
                raise CorruptionError(
                    f"{self.directory / 'keys'}: offset {number * SLOT_BYTES}: this is no whole key; what it sealed "
                    "cannot be read: restore the file, or zero these 512 bytes to give the subject up"
                )
            subject = slot[_HEAD.size : _HEAD.size + size].decode()
            self._slots[subject] = (number, key_id.hex(), key)
            self._keys[key_id.hex()] = key

    def seal(self, subject: str, data: bytes, context: bytes) -> tuple[str, bytes]:
        """Encrypt `data` under the subject's key, which is made, durably, if there is none; (key id, sealed)."""
        found = self._slots.get(subject)
        _, key_id, key = self._make(subject) if found is None else found
        nonce = os.urandom(_NONCE_BYTES)
        return key_id, nonce + self._aead.AESGCM(key).encrypt(nonce, data, context)

    def open(self, key_id: str, sealed: bytes, context: bytes) -> bytes | None:
        """What was sealed; None if the key was destroyed. Raises CorruptionError if it was changed or moved."""
        key = self._keys.get(key_id)
        if key is None:
            return None
        try:
            opened: bytes = self._aead.AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except Exception as error:  # InvalidTag has no message and is the only one for bytes that are long enough
            raise CorruptionError(
                f"what was sealed under key {key_id} was changed or belongs to another place ({type(error).__name__}); "
                "restore the log from another replica"
            ) from None
        return opened

    def destroy(self, subject: str) -> str | None:
        """Overwrite a subject's key with zeros, durably; its id, None if there is none."""
        found = self._slots.pop(subject, None)
        if found is None:
            return None
        number, key_id, _ = found
        self._keys.pop(key_id)
        os.pwrite(self._fd, bytes(SLOT_BYTES), number * SLOT_BYTES)
        os.fsync(self._fd)
        self._free.append(number)
        return key_id

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, subject: object) -> bool:
        return subject in self._slots

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._lock.release()

    def __enter__(self) -> SubjectKeys:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _make(self, subject: str) -> tuple[int, str, bytes]:
        name = subject.encode()
        if not 0 < len(name) <= SUBJECT_BYTES_MAX:
            raise LimitError(f"a subject of {len(name)} bytes; subjects have 1 to {SUBJECT_BYTES_MAX} bytes of UTF-8")
        key_id, key = os.urandom(16), os.urandom(32)
        number = self._free.pop() if self._free else self._count
        slot = (_HEAD.pack(MAGIC, key_id, key, len(name)) + name).ljust(SLOT_BYTES - 4, b"\0")
        slot += crc32c(slot).to_bytes(4, "little")
        try:
            os.pwrite(self._fd, slot, number * SLOT_BYTES)
            os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, bytes(SLOT_BYTES), number * SLOT_BYTES)
            self._count = max(self._count, number + 1)
            self._free.append(number)
            raise UnavailableError(f"no key could be made for a subject: {error.strerror}; free some space") from error
        self._count = max(self._count, number + 1)
        self._slots[subject] = (number, key_id.hex(), key)
        self._keys[key_id.hex()] = key
        return self._slots[subject]

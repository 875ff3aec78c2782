"""The reference: the flow over pyverbs, in Python. Plain to read, and slow: several objects a message."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import mmap
import os
import socket
import threading
from typing import Any

from nova.errors import PeerError, UnavailableError, UsageError
from nova.transport.base import Buffer
from nova.transport.rdma.devices import Device, Gid, Port, import_pyverbs
from nova.transport.rdma.endpoint import MIN_RNR_TIMER, RETRY, RNR_RETRY, TIMEOUT, memory_refused, status_text
from nova.transport.rdma.flow import (
    BULK_BYTES,
    BULK_SLOTS,
    INLINE_BYTES,
    SEND_QUEUE,
    SLOT_BYTES,
    SLOTS,
    VERSION,
    WRITE_BYTES,
    Flow,
    Offer,
    Step,
)

RECEIVE_AT = 0
BULK_AT = SLOTS * SLOT_BYTES
SEND_AT = BULK_AT + BULK_SLOTS * BULK_BYTES
SEND_BULK_AT = SEND_AT + SLOTS * SLOT_BYTES
MEMORY_BYTES = SEND_BULK_AT + BULK_SLOTS * BULK_BYTES
COMPLETIONS = SLOTS + SEND_QUEUE
"""Every receive and every send can be complete at once, so the queue cannot overrun."""
PEER_MAY_WRITE_AT = (BULK_AT, SEND_AT)

_SEND = 1 << 32  # wr_id of what was sent; a receive has the number of its slot
_files = threading.Lock()


class VerbsEndpoint:
    """One connection through pyverbs. See `Endpoint`.

    raises  ImportError without pyverbs; UnavailableError if the device gives no queue pair or memory
    """

    def __init__(self, device: Device, port: Port, gid: Gid, psn: int | None = None) -> None:
        self._e: Any = import_pyverbs("enums")
        self._port, self._gid = port, gid
        self._flow: Flow | None = None
        self._remote: Offer | None = None
        self._queue = bytearray()
        self._sent_slots = self._sent_bulks = 0
        self._broken: PeerError | None = None
        self._closed = False
        self._pid = os.getpid()
        self._memory = mmap.mmap(-1, MEMORY_BYTES)
        self._memory.madvise(mmap.MADV_DONTFORK)  # a child would take pages from under the device
        self._context = import_pyverbs("device").Context(name=device.name)
        try:
            self._open(psn)
        except BaseException:
            self.close()
            raise

    def _open(self, psn: int | None) -> None:
        e = self._e
        pd, mr, cq, qp = (import_pyverbs(name) for name in ("pd", "mr", "cq", "qp"))
        self._pd = pd.PD(self._context)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        access = e.IBV_ACCESS_LOCAL_WRITE
        try:
            self._mr = mr.MR(self._pd, MEMORY_BYTES, access, address=self._address)
            # The peer may write into the bulk slots and nowhere else.
            first, end = PEER_MAY_WRITE_AT
            self._bulk_mr = mr.MR(
                self._pd, end - first, access | e.IBV_ACCESS_REMOTE_WRITE, address=self._address + first
            )
        except Exception as error:
            raise memory_refused(MEMORY_BYTES, str(error)) from None
        with _files:  # pyverbs does not tell the file of a channel: it is the one that is new
            before = _event_files()
            self._channel = cq.CompChannel(self._context)
            (self.fd,) = _event_files() - before
        os.set_blocking(self.fd, False)
        self._cq = cq.CQ(self._context, COMPLETIONS, None, self._channel, 0)
        cap = qp.QPCap(SEND_QUEUE, SLOTS, 1, 1, INLINE_BYTES)
        init = qp.QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self._cq, rcq=self._cq, cap=cap, sq_sig_all=0)
        try:
            self._qp = qp.QP(self._pd, init)
        except Exception as error:
            raise UnavailableError(f"the device gives no queue pair: {error}") from None
        attributes = qp.QPAttr(port_num=self._port.number)
        attributes.qp_access_flags = access | e.IBV_ACCESS_REMOTE_WRITE
        self._qp.to_init(attributes)
        for slot in range(SLOTS):
            self._post_receive(slot)
        self.offer = Offer(
            version=VERSION,
            gid=self._gid.address,
            lid=self._context.query_port(self._port.number).lid,
            qpn=self._qp.qp_num,
            psn=int.from_bytes(os.urandom(3)) if psn is None else psn,
            mtu=self._context.query_port(self._port.number).active_mtu,
            slots=SLOTS,
            slot_bytes=SLOT_BYTES,
            bulk_address=self._address + BULK_AT,
            bulk_rkey=self._bulk_mr.rkey,
            bulk_slots=BULK_SLOTS,
            bulk_bytes=BULK_BYTES,
        )

    def connect(self, remote: Offer) -> None:
        remote.check()
        qp, addr = import_pyverbs("qp"), import_pyverbs("addr")
        attributes = qp.QPAttr(port_num=self._port.number)
        attributes.path_mtu = min(self.offer.mtu, remote.mtu)
        attributes.dest_qp_num = remote.qpn
        attributes.rq_psn = remote.psn
        attributes.sq_psn = self.offer.psn
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer = MIN_RNR_TIMER
        attributes.timeout = TIMEOUT
        attributes.retry_cnt = RETRY
        attributes.rnr_retry = RNR_RETRY
        route = addr.GlobalRoute(
            dgid=addr.GID(ipaddress.IPv6Address(remote.gid).exploded), sgid_index=self._gid.index, hop_limit=64
        )
        attributes.ah_attr = addr.AHAttr(gr=route, is_global=1, dlid=remote.lid, port_num=self._port.number)
        try:
            self._qp.to_rts(attributes)
        except Exception as error:
            raise UnavailableError(f"no way to {remote.gid} from {self._gid.address}: {error}") from None
        self._flow = Flow(
            peer_slots=remote.slots,
            peer_slot_bytes=remote.slot_bytes,
            peer_bulk_slots=remote.bulk_slots,
            peer_bulk_bytes=remote.bulk_bytes,
        )
        self._remote = remote

    # -- out -----------------------------------------------------------------------------------------------------

    @property
    def queued_bytes(self) -> int:
        return len(self._queue)

    @property
    def idle(self) -> bool:
        return not self._queue and (self._flow is None or self._flow.idle)

    def write(self, data: Buffer) -> None:
        self._queue += data
        with contextlib.suppress(PeerError):
            self.flush()

    def flush(self, last: bool = False) -> None:
        flow = self._check()
        while (step := flow.step(len(self._queue), last=last)) is not None:
            try:
                self._post(step)
            except PeerError:
                raise
            except Exception as error:
                raise self._break(f"the device takes no more: {error}") from None

    def _post(self, step: Step) -> None:
        e, remote = self._e, self._remote
        assert remote is not None
        flags = e.IBV_SEND_SIGNALED if step.signaled else 0
        if step.kind != "bulk":
            at = SEND_AT + self._sent_slots % SLOTS * SLOT_BYTES
            self._sent_slots += 1
            self._take(at, step.size)
            if step.size <= INLINE_BYTES:
                flags |= e.IBV_SEND_INLINE
            self._request(e.IBV_WR_SEND_WITH_IMM, at, step.size, flags, step.immediate)
            return
        at = SEND_BULK_AT + self._sent_bulks % BULK_SLOTS * BULK_BYTES
        self._sent_slots += 1
        self._sent_bulks += 1
        self._take(at, step.size)
        target = remote.bulk_address + step.slot * remote.bulk_bytes
        for offset in range(0, step.size, WRITE_BYTES):
            size = min(WRITE_BYTES, step.size - offset)
            last = offset + size == step.size
            opcode = e.IBV_WR_RDMA_WRITE_WITH_IMM if last else e.IBV_WR_RDMA_WRITE
            self._request(opcode, at + offset, size, flags if last else 0, step.immediate, target + offset)

    def _request(self, opcode: int, at: int, size: int, flags: int, immediate: int, target: int = 0) -> None:
        wr = import_pyverbs("wr")
        sge = wr.SGE(self._address + at, size, self._mr.lkey)
        request = wr.SendWR(
            wr_id=_SEND, opcode=opcode, num_sge=1, imm_data=socket.htonl(immediate), sg=[sge], send_flags=flags
        )
        if target:
            assert self._remote is not None
            request.set_wr_rdma(self._remote.bulk_rkey, target)
        self._qp.post_send(request)

    def _take(self, at: int, size: int) -> None:
        self._memory[at : at + size] = self._queue[:size]
        del self._queue[:size]

    # -- in ------------------------------------------------------------------------------------------------------

    def poll(self) -> list[bytes]:
        flow = self._check()
        arrived: list[bytes] = []
        while True:
            count, completions = self._cq.poll(16)
            if not count:
                break
            for completion in completions:
                if completion.status != self._e.IBV_WC_SUCCESS:
                    error = self._break(status_text(completion.status))
                    if arrived:  # it came before the break, so it counts; the next call tells
                        return arrived
                    raise error
                if completion.wr_id >= _SEND:
                    flow.completed()
                    continue
                bulk = completion.opcode == self._e.IBV_WC_RECV_RDMA_WITH_IMM
                slot = completion.wr_id
                size = flow.arrived(socket.ntohl(completion.imm_data), bulk=bulk) or completion.byte_len
                at = BULK_AT + self._bulk_slot() * BULK_BYTES if bulk else RECEIVE_AT + slot * SLOT_BYTES
                if size:
                    arrived.append(self._memory[at : at + size])
                self._post_receive(slot)
        self.flush()
        return arrived

    _bulks_taken = 0

    def _bulk_slot(self) -> int:
        """Bulk slots are used in their order, so nobody has to name them."""
        self._bulks_taken += 1
        return (self._bulks_taken - 1) % BULK_SLOTS

    def _post_receive(self, slot: int) -> None:
        wr = import_pyverbs("wr")
        sge = wr.SGE(self._address + RECEIVE_AT + slot * SLOT_BYTES, SLOT_BYTES, self._mr.lkey)
        self._qp.post_recv(wr.RecvWR(wr_id=slot, num_sge=1, sg=[sge]))

    def arm(self) -> None:
        if not self._closed:
            self._cq.req_notify()

    def take_event(self) -> None:
        if self._closed:
            return
        try:
            self._channel.get_cq_event(self._cq)
        except Exception as error:
            if getattr(error, "error_code", errno.EAGAIN) not in (errno.EAGAIN, 0):
                raise
        else:
            self._cq.ack_events(1)

    # -- the end -------------------------------------------------------------------------------------------------

    def _check(self) -> Flow:
        if os.getpid() != self._pid:
            raise UsageError(f"this RDMA connection belongs to process {self._pid}: open one in each process")
        if self._closed:
            raise PeerError("this RDMA connection is closed")
        if self._broken is not None:
            raise self._broken
        if self._flow is None:
            raise PeerError("not connected yet")
        return self._flow

    def _break(self, cause: str) -> PeerError:
        self._broken = PeerError(f"the RDMA connection broke: {cause}")
        return self._broken

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Children first; a queue pair that is gone writes no more into memory that is given back.
        for name in ("_qp", "_cq", "_channel", "_bulk_mr", "_mr", "_pd", "_context"):
            if (part := getattr(self, name, None)) is not None:
                part.close()


def _event_files() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[infinibandevent]":
                found.add(int(name))
        except OSError:
            continue
    return found

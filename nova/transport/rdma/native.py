"""The compiled data path: the flow over libibverbs, looked for at run time; holds no lock of the interpreter."""

from __future__ import annotations

import ipaddress
import os

from nova._native.rdma import MEMORY_BYTES, QueuePair, lack
from nova.errors import UnavailableError
from nova.transport.rdma.devices import Device, Gid, Port
from nova.transport.rdma.endpoint import memory_refused, status_text
from nova.transport.rdma.flow import VERSION, Offer

__all__ = ["NativeEndpoint", "lack"]


class NativeEndpoint(QueuePair):
    """One connection in C. See `Endpoint`.

    raises  UnavailableError if the device gives no queue pair or memory
    """

    offer: Offer

    def __new__(cls, device: Device, port: Port, gid: Gid, psn: int | None = None) -> NativeEndpoint:
        psn = int.from_bytes(os.urandom(3)) if psn is None else psn
        try:
            self: NativeEndpoint = super().__new__(cls, device.name, port.number, gid.index, psn)  # type: ignore[assignment]
        except OSError as error:
            cause = os.strerror(error.errno or 0)
            if error.strerror == "memory":
                raise memory_refused(MEMORY_BYTES, cause) from None
            raise UnavailableError(f"{device.name}: {cause if error.errno else error.strerror}") from None
        gid_bytes, *numbers = self.offer_fields
        lid, qpn, psn, mtu, *rest = numbers
        self.offer = Offer(VERSION, str(ipaddress.IPv6Address(gid_bytes)), lid, qpn, psn, mtu, *rest)
        return self

    def connect(self, remote: Offer) -> None:
        remote.check()
        fields = (
            ipaddress.IPv6Address(remote.gid).packed, remote.lid, remote.qpn, remote.psn, remote.mtu, remote.slots,
            remote.slot_bytes, remote.bulk_address, remote.bulk_rkey, remote.bulk_slots, remote.bulk_bytes,
        )  # fmt: skip
        try:
            self.connect_fields(fields)
        except OSError as error:
            cause = os.strerror(error.errno or 0)
            raise UnavailableError(f"no way to {remote.gid} from {self.offer.gid}: {cause}") from None

    def explain(self, status: int) -> str:
        return "the device takes no more requests" if status < 0 else status_text(status)

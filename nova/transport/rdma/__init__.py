"""Streams over RDMA: reliable-connected queue pairs, found and chosen at run time; never needed to install nova."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nova.errors import UsageError
from nova.transport.base import Identity, Limits, Tls

if TYPE_CHECKING:
    from nova.transport.rdma.transport import DataPath, RdmaTransport

__all__ = ["engine"]


def engine(
    identity: Identity,
    *,
    key: bytes | None,
    limits: Limits | None = None,
    tls: Tls | None = None,
    device: str = "",
    data_path: DataPath = "auto",
    fallback: bool = False,
) -> RdmaTransport:
    """The engine of ``rdma://host:port``, where the nodes meet over TCP first. See `RdmaTransport`.

    raises  UsageError if TLS is asked for
    """
    from nova.transport.rdma.transport import RdmaTransport

    if tls is not None:
        raise UsageError(
            "rdma:// has no TLS: the device moves bytes as they are, proved by the cluster key but for all to read; "
            "use tcp:// where they must be secret"
        )
    return RdmaTransport(identity, key=key, limits=limits, device=device, data_path=data_path, fallback=fallback)

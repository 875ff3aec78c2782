"""Streams of messages between nodes: one seam (`base`), several engines, and the mesh that keeps peers connected."""

from nova.transport.base import (
    PRIORITY_BULK,
    PRIORITY_URGENT,
    Buffer,
    Identity,
    Limits,
    Stream,
    StreamStats,
    Tls,
    Transport,
)
from nova.transport.face import Listener, connect, listen
from nova.transport.mesh import Mesh, PeerStats
from nova.transport.tcp import TcpTransport

__all__ = [
    "PRIORITY_BULK",
    "PRIORITY_URGENT",
    "Buffer",
    "Identity",
    "Limits",
    "Listener",
    "Mesh",
    "PeerStats",
    "Stream",
    "StreamStats",
    "TcpTransport",
    "Tls",
    "Transport",
    "connect",
    "listen",
]

"""Streams of messages between nodes: one seam (`base`), several engines, and the mesh that keeps peers connected."""

from nova.transport.base import Buffer, Identity, Limits, Stream, StreamStats, Transport
from nova.transport.mesh import Mesh, PeerStats
from nova.transport.tcp import TcpTransport

__all__ = ["Buffer", "Identity", "Limits", "Mesh", "PeerStats", "Stream", "StreamStats", "TcpTransport", "Transport"]

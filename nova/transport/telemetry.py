"""What links are worth, measured in passing: bandwidth, round trip and loss of the traffic that there is anyway.

Time is cut into buckets of one width, the same for everybody: bucket number = time // width. A bucket holds sums and a
least value, all integers, so what several streams, processes or nodes saw of a link is merged exactly, in any order.
What is told weighs a bucket the less the older it is. Merging adds: merge what different observers saw, each once.
"""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Hashable, Mapping

import msgspec

from nova.errors import PeerError, UsageError
from nova.transport.forecast import BandwidthForecast

__all__ = ["LinkEstimate", "LinkSample", "LinkTelemetry", "TcpInfo", "TcpMeter", "tcp_info"]

BUCKET_NS = 10_000_000_000
BUCKETS = 360
HALF_LIFE_NS = 60_000_000_000
LINKS_MAX = 4096
TCP_INFO_BYTES = 192
MAGIC = b"NLT\x01"


class LinkSample(msgspec.Struct, frozen=True):
    """One look at a link.

    moved_bytes  that arrived on the other side since the last look, and busy_ns in which they did
    rtt_ns       round trip of now, 0: not known
    segments     sent since the last look, and how many of them again
    """

    moved_bytes: int = 0
    busy_ns: int = 0
    rtt_ns: int = 0
    segments: int = 0
    retransmits: int = 0


class LinkEstimate(msgspec.Struct, frozen=True):
    """What a link was worth lately. bandwidth_bps is what it carried while it carried anything, not what it could."""

    bandwidth_bps: float
    rtt_ns: int
    rtt_ns_min: int
    loss_ratio: float
    age_ns: int
    """How old the youngest bucket is."""


class _Bucket(msgspec.Struct, array_like=True):
    moved_bytes: int = 0
    busy_ns: int = 0
    rtt_ns_sum: int = 0
    rtt_count: int = 0
    rtt_ns_min: int = 0
    segments: int = 0
    retransmits: int = 0

    def add(self, other: _Bucket) -> None:
        self.moved_bytes += other.moved_bytes
        self.busy_ns += other.busy_ns
        self.rtt_ns_sum += other.rtt_ns_sum
        self.rtt_count += other.rtt_count
        known = [rtt for rtt in (self.rtt_ns_min, other.rtt_ns_min) if rtt]
        self.rtt_ns_min = min(known, default=0)
        self.segments += other.segments
        self.retransmits += other.retransmits


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[int, list[tuple[str, list[tuple[int, _Bucket]]]]])


class LinkTelemetry:
    """Links by name, each with its latest buckets.

    now_ns is that of a clock which all who merge share (time.time_ns). Raises UsageError for widths that cannot be.
    """

    def __init__(self, *, bucket_ns: int = BUCKET_NS, buckets: int = BUCKETS, half_life_ns: int = HALF_LIFE_NS) -> None:
        if bucket_ns < 1 or buckets < 1 or half_life_ns < 1:
            raise UsageError(f"{buckets} buckets of {bucket_ns} ns, half life {half_life_ns} ns; all are 1 or more")
        self.bucket_ns, self.buckets, self.half_life_ns = bucket_ns, buckets, half_life_ns
        self._links: dict[str, dict[int, _Bucket]] = {}

    @property
    def links(self) -> list[str]:
        return sorted(self._links)

    def observe(self, link: str, now_ns: int, sample: LinkSample) -> None:
        """Note one look. Raises UsageError for sizes below 0, or over LINKS_MAX links."""
        if min(sample.moved_bytes, sample.busy_ns, sample.rtt_ns, sample.segments, sample.retransmits) < 0:
            raise UsageError(f"{sample} has a value below 0")
        if sample == LinkSample():
            return
        self._add(link, now_ns // self.bucket_ns, _Bucket(
            sample.moved_bytes, sample.busy_ns, sample.rtt_ns, int(sample.rtt_ns > 0), sample.rtt_ns,
            sample.segments, sample.retransmits,
        ))  # fmt: skip

    def estimate(self, link: str, now_ns: int) -> LinkEstimate | None:
        """What the link is worth; None if nothing is known of it."""
        kept = self._links.get(link)
        if not kept:
            return None
        newest = max(kept)
        moved = busy = rtts = looks = segments = retransmits = 0.0
        for number, bucket in kept.items():
            weight = math.exp2(-(newest - number) * self.bucket_ns / self.half_life_ns)
            moved += weight * bucket.moved_bytes
            busy += weight * bucket.busy_ns
            rtts += weight * bucket.rtt_ns_sum
            looks += weight * bucket.rtt_count
            segments += weight * bucket.segments
            retransmits += weight * bucket.retransmits
        least = min((bucket.rtt_ns_min for bucket in kept.values() if bucket.rtt_ns_min), default=0)
        return LinkEstimate(
            bandwidth_bps=8e9 * moved / busy if busy else 0.0,
            rtt_ns=round(rtts / looks) if looks else 0,
            rtt_ns_min=least,
            loss_ratio=min(1.0, retransmits / segments) if segments else 0.0,
            age_ns=max(0, now_ns - (newest + 1) * self.bucket_ns),
        )

    def bandwidths_bps(self, link: str) -> list[float]:
        """Of each bucket in which anything moved, oldest first."""
        kept = self._links.get(link, {})
        return [8e9 * kept[n].moved_bytes / kept[n].busy_ns for n in sorted(kept) if kept[n].busy_ns]

    def forecast_bps(self, link: str) -> float | None:
        """The bandwidth to expect in the next bucket (`BandwidthForecast`); None if nothing is known."""
        seen = self.bandwidths_bps(link)
        if not seen:
            return None
        model = BandwidthForecast()
        for value in seen:
            model.observe(value)
        return model.predict()

    def merge(self, other: LinkTelemetry) -> LinkTelemetry:
        """Take in what another observer saw; returns self. Raises UsageError if its buckets are of another width."""
        if other.bucket_ns != self.bucket_ns:
            raise UsageError(f"buckets of {other.bucket_ns} ns do not merge into ones of {self.bucket_ns}")
        for link, kept in other._links.items():
            for number, bucket in kept.items():
                self._add(link, number, bucket)
        return self

    def to_bytes(self) -> bytes:
        """Equal telemetry has equal bytes."""
        links = [(link, sorted(self._links[link].items())) for link in self.links]
        return MAGIC + _encoder.encode((self.bucket_ns, links))

    @classmethod
    def from_bytes(cls, data: bytes) -> LinkTelemetry:
        """Raises PeerError for bytes that are none of ours."""
        if data[:4] != MAGIC:
            raise PeerError(f"telemetry starts {data[:4]!r}, not {MAGIC!r}")
        try:
            bucket_ns, links = _decoder.decode(data[4:])
            out = cls(bucket_ns=bucket_ns)
        except (msgspec.DecodeError, UsageError, UnicodeDecodeError) as error:
            raise PeerError(f"telemetry cannot be read: {error}") from None
        if len(links) > LINKS_MAX:
            raise PeerError(f"telemetry of {len(links)} links is over the limit of {LINKS_MAX}")
        for link, kept in links:
            for number, bucket in kept:
                if min(number, *msgspec.structs.astuple(bucket)) < 0:
                    raise PeerError(f"telemetry of {link!r} has a value below 0")
                out._add(link, number, bucket)
        return out

    def _add(self, link: str, number: int, bucket: _Bucket) -> None:
        kept = self._links.get(link)
        if kept is None:
            if len(self._links) >= LINKS_MAX:
                raise UsageError(f"{LINKS_MAX} links are known already; name links by peer, not by connection")
            kept = self._links[link] = {}
        # What is older than the window says nothing any more; this order of steps makes merging commute.
        newest = max(number, max(kept, default=number))
        if number > newest - self.buckets:
            kept.setdefault(number, _Bucket()).add(bucket)
        for old in [n for n in kept if n <= newest - self.buckets]:
            del kept[old]


class TcpInfo(msgspec.Struct, frozen=True):
    """What the kernel knows of a connection (tcp(7), TCP_INFO)."""

    mss_bytes: int
    window_segments: int
    rtt_ns: int
    rtt_ns_min: int
    segments: int
    retransmits: int
    delivery_bps: int


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """None where the kernel tells nothing: no TCP, or a connection that is closed."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:
        return None
    if len(raw) < 168:
        return None

    def u32(at: int) -> int:
        return int(struct.unpack_from("=I", raw, at)[0])

    least_us = u32(148)
    return TcpInfo(
        mss_bytes=u32(16), window_segments=u32(80), rtt_ns=u32(68) * 1000,
        rtt_ns_min=0 if least_us == 0xFFFFFFFF else least_us * 1000,
        segments=u32(156), retransmits=u32(100), delivery_bps=8 * int(struct.unpack_from("=Q", raw, 160)[0]),
    )  # fmt: skip


class TcpMeter:
    """Makes samples of one link from the connections that go over it, however they come and go."""

    def __init__(self) -> None:
        self._counted: dict[Hashable, tuple[int, int]] = {}
        self._at_ns = 0
        self._moved_bytes = 0

    def look(self, now_ns: int, moved_bytes: int, sockets: Mapping[Hashable, socket.socket | None]) -> LinkSample:
        """What happened since the last look. moved_bytes is a total; a smaller one than before begins anew."""
        segments = retransmits = 0
        rtts = []
        for name, sock in sockets.items():
            info = tcp_info(sock) if sock is not None else None
            if info is None:
                continue
            before = self._counted.get(name, (0, 0))
            segments += max(0, info.segments - before[0])
            retransmits += max(0, info.retransmits - before[1])
            self._counted[name] = info.segments, info.retransmits
            if info.rtt_ns:
                rtts.append(info.rtt_ns)
        moved = max(0, moved_bytes - self._moved_bytes) if self._at_ns else 0
        busy_ns = now_ns - self._at_ns if self._at_ns and moved else 0
        self._at_ns, self._moved_bytes = now_ns, moved_bytes
        return LinkSample(moved, busy_ns, sum(rtts) // len(rtts) if rtts else 0, segments, retransmits)

    def forget(self, name: Hashable) -> None:
        """A connection is gone."""
        self._counted.pop(name, None)

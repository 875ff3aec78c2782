"""Deltas between images: what makes one state of a machine's memory, a disk or a snapshot out of another.

`encode(base, new)` gives the delta, `decode(base, delta)` gives `new` back or an error, never other bytes. Who makes
many deltas of one base keeps a `DeltaEncoder`, who follows them in place a `DeltaDecoder`: they know a digest of each
page and need not read what did not change. The format is in csrc/delta.h, what bounds size and speed in
docs/explanation/delta.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nova._native.delta import (
    LEVEL_MAX,
    PAGE_BYTES,
    VERSION,
    DeltaDecoder,
    DeltaEncoder,
    decode,
    decode_into,
    decode_span,
    encode,
    encode_span,
    identity,
    scan,
    span_places,
    zstd_version,
)
from nova.errors import UsageError

if TYPE_CHECKING:
    from nova.types import Buffer

__all__ = [
    "LEVEL_MAX",
    "PAGE_BYTES",
    "VERSION",
    "DeltaDecoder",
    "DeltaEncoder",
    "DeltaStat",
    "decode",
    "decode_into",
    "decode_span",
    "encode",
    "encode_span",
    "identity",
    "level_for",
    "span_places",
    "stat",
    "zstd_version",
]


class DeltaStat(msgspec.Struct, frozen=True):
    """What is in a delta. Sizes are in bytes; `pages` counts pages of the new image by what they are made of."""

    version: int
    spans: int
    base_bytes: int
    image_bytes: int
    delta_bytes: int
    frames: int
    pages: dict[str, int]
    tokens_raw: int
    tokens_stored: int
    literals_raw: int
    literals_stored: int
    base_identities: list[str]
    identities: list[str]

    @property
    def ratio(self) -> float:
        """How many times larger the image is."""
        return self.image_bytes / self.delta_bytes


_STREAMS = ("tokens_raw", "tokens_stored", "literals_raw", "literals_stored")
_SUMMED = ("base_bytes", "image_bytes", "delta_bytes", "frames", *_STREAMS)


def stat(delta: Buffer) -> DeltaStat:
    """Look into a delta without its base.

    raises  CorruptionError for bytes that are no whole delta; LimitError; UsageError where it needs libzstd
    """
    spans = scan(delta)
    summed = {name: sum(span[name] for span in spans) for name in _SUMMED}
    return DeltaStat(
        version=VERSION,
        spans=len(spans),
        pages={kind: sum(span["pages"][kind] for span in spans) for kind in spans[0]["pages"]},
        base_identities=[span["base_identity"] for span in spans],
        identities=[span["identity"] for span in spans],
        **summed,
    )


# A level pays where what it makes smaller takes longer on the link than it does itself; on etcd and sqlite of
# bench/images.py that is so up to about these.
_LEVEL_BPS = ((9, 2e6), (3, 10e6), (1, 2e9))


def level_for(link_bps: float) -> int:
    """The level at which a delta is through soonest on a link of so many bits a second; 0 (none) over 2 Gbit/s.

    raises  UsageError for a link of no bits
    """
    if not link_bps > 0:
        raise UsageError(f"link_bps is {link_bps}; a link carries more than 0 bits a second")
    return next((level for level, bps in _LEVEL_BPS if link_bps <= bps), 0)

"""What an epoch may say about `hybrid`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from nova.consensus.eventual.options import SpreadOptions
from nova.errors import UsageError
from nova.types import NodeId, Region


class HybridOptions(SpreadOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an epoch may say about `hybrid`, besides `SpreadOptions`.

    regions        member -> its region, of all members
    inner          the protocol inside a region: `raft`
    inner_options  its options
    across         between regions: `causal`
    """

    regions: dict[NodeId, Region] = msgspec.field(default_factory=dict)
    inner: str = "raft"
    inner_options: dict[str, Any] = msgspec.field(default_factory=dict)
    across: str = "causal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner != "raft":
            raise UsageError(f"inner is {self.inner!r}; inside a region there is `raft`")
        if self.across != "causal":
            raise UsageError(
                f"across is {self.across!r}; between regions there is `causal`: no leader of leaders orders them, so "
                "keys that need one order everywhere belong to an epoch of raft, paxos or epaxos"
            )


def regions_of(members: Sequence[NodeId], options: HybridOptions) -> dict[Region, tuple[NodeId, ...]]:
    """Each region and its members, both sorted. Raises UsageError if that is not every member, and nobody else."""
    given = options.regions
    if set(given) != set(members):
        missing, strange = sorted(set(members) - set(given)), sorted(set(given) - set(members))
        wrong = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if missing else ""
        extra = f"{', '.join(strange)} {'is' if len(strange) == 1 else 'are'} no member" if strange else ""
        raise UsageError(
            f"`regions` has to name the region of each member: {'; '.join(each for each in (wrong, extra) if each)}; "
            'give {"member": "region", ...}'
        )
    return {
        region: tuple(member for member in members if given[member] == region) for region in sorted(set(given.values()))
    }


__all__ = ["HybridOptions", "regions_of"]

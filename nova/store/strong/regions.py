"""The state machine of keys that regions own: one machine of strong keys for each region, side by side.

A protocol that is strong inside regions and causal between them (nova.consensus.hybrid) tells the commands of one
region in one order at all members, and those of different regions in any. Each command says of which region it is and
touches the keys of that region alone, so members that were told the same commands hold the same, whatever came between
them: the state is a product of states, and none looks at another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b
from itertools import groupby
from typing import Final

import msgspec

from nova.consensus.core import Command
from nova.errors import CorruptionError, UsageError
from nova.store.strong.commands import Told, Verdict, pack
from nova.store.strong.keys import WatchedMachine

STATE_VERSION: Final = 1


class Addressed(msgspec.Struct, frozen=True, array_like=True, tag="of"):
    """A command or a query of strong keys, and the region whose keys it is about."""

    region: str
    data: bytes


class RegionalMachine:
    """The machine; see `nova.consensus.sessions.Machine`.

    regions  of the group, the same at all members
    """

    def __init__(self, regions: Collection[str], **bounds: int) -> None:
        self.of: Final = {region: WatchedMachine(**bounds) for region in sorted(regions)}
        """region -> its machine: to read, and to watch."""

    def __len__(self) -> int:
        return sum(len(machine) for machine in self.of.values())

    @property
    def digest(self) -> str:
        """Equal where all regions hold the same at the same revisions."""
        states = [(region, machine.revision, machine.digest) for region, machine in self.of.items()]
        return blake2b(pack(states), digest_size=16).hexdigest()

    def apply(self, commands: Sequence[Command]) -> list[bytes]:
        """Apply in order; a packed `Told` for each."""
        told: list[bytes] = []
        for region, group in groupby(map(_addressed, commands), key=lambda each: each.region):
            inner = [Command(0, 0, each.data) for each in group]
            machine = self.of.get(region)
            if machine is None:
                reason = f"{region!r} is no region of this group; they are {', '.join(self.of)}"
                told += [pack(Told(Verdict.REFUSED, 0, None, reason=reason))] * len(inner)
            else:
                told += machine.apply(inner)
        return told

    def read(self, query: bytes) -> bytes:
        """Answer a packed `Addressed` query. Raises UsageError for anything else."""
        try:
            asked = _unpack_addressed(query)
        except (msgspec.MsgspecError, ValueError) as error:
            raise UsageError(f"no query of a region's keys: {error}") from None
        if asked.region not in self.of:
            raise UsageError(f"{asked.region!r} is no region of this group; they are {', '.join(self.of)}")
        return self.of[asked.region].read(asked.data)

    def snapshot(self) -> bytes:
        """The whole state; equal states give equal bytes."""
        states = [(region, machine.snapshot()) for region, machine in self.of.items()]
        return pack((STATE_VERSION, states))  # type: ignore[no-any-return]

    def restore(self, data: bytes) -> None:
        """Replace the state. Raises CorruptionError."""
        try:
            version, states = _unpack_state(data)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptionError(f"a state of {len(data)} bytes holds no keys of regions: {error}") from None
        if version != STATE_VERSION:
            raise CorruptionError(
                f"the state of keys of regions has format {version}, this release reads {STATE_VERSION}: upgrade this "
                "node"
            )
        if [region for region, _ in states] != list(self.of):
            raise CorruptionError(
                f"a state is of the regions {', '.join(region for region, _ in states)}; this group has "
                f"{', '.join(self.of)}"
            )
        for region, state in states:
            self.of[region].restore(state)


def _addressed(command: Command) -> Addressed:
    try:
        return _unpack_addressed(command.data)
    except (msgspec.MsgspecError, ValueError):
        return Addressed("", command.data)  # of no region: answered so, alike at every member


_unpack_addressed = msgspec.msgpack.Decoder(Addressed).decode
_unpack_state = msgspec.msgpack.Decoder(tuple[int, list[tuple[str, bytes]]]).decode

__all__ = ["Addressed", "RegionalMachine"]

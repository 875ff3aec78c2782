"""What a node answers that has no group: its keys are eventual, and nobody orders anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from nova.errors import UsageError

if TYPE_CHECKING:
    from nova.store.strong import Transacted
    from nova.store.strong.commands import Condition, Operation


class NoGroup:
    """Refuses what needs a group."""

    async def transact(self, key: str, conditions: Sequence[Condition], operations: Sequence[Operation]) -> Transacted:
        _no_group()

    def consensus(self) -> dict[str, Any]:
        _no_group()

    async def consensus_add(self, node: str, address: str | None, learner: bool) -> dict[str, Any]:
        _no_group()

    async def consensus_remove(self, node: str) -> dict[str, Any]:
        _no_group()

    async def region_add(self, node: str, address: str | None, region: str) -> dict[str, Any]:
        _no_regions()

    async def region_remove(self, node: str, region: str) -> dict[str, Any]:
        _no_regions()

    async def consensus_transfer(self, node: str) -> dict[str, Any]:
        _no_group()

    async def consensus_switch(
        self, protocol: str, members: Sequence[str], addresses: dict[str, str]
    ) -> dict[str, Any]:
        _no_group()


def _no_group() -> NoReturn:
    raise UsageError("this node has no group, so it has no strong keys; set consensus.members and classes")


def _no_regions() -> NoReturn:
    raise UsageError("this node keeps no hybrid keys, so it is of no region's group; set hybrid.members and classes")


def check_eventual(consistency: str | None) -> None:
    """Eventual keys are read where the question comes. Raises UsageError."""
    if consistency not in (None, "local"):
        raise UsageError(f"consistency is {consistency!r}, but the key is eventual and read locally; leave it out")


__all__ = ["NoGroup", "check_eventual"]

"""What a node is told of the regions: the members that keep keys of class hybrid, and where each of them is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nova.server import group_config
from nova.server.addresses import is_loopback

if TYPE_CHECKING:
    from nova.server.config import NodeConfig


class Hybrid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The members that keep keys of class hybrid. Regions stay as the group began.

    members     name -> HOST:PORT of every member that is known, this node included; empty: no such keys
    regions     name -> its region, of every one of these
    listen      where this member listens; default: its address among the members
    founders    who began the group; default: all members. A member that is added later names those, not itself
    tick_ms     an election takes some tens of ticks; the same at all members
    timeout_ms  a call without an answer for so long fails
    bytes_max   of the keys and values of one region; more is refused
    """

    members: dict[str, str] = {}
    regions: dict[str, str] = {}
    listen: str = ""
    founders: list[str] = []
    tick_ms: int = 20
    timeout_ms: int = 10_000
    bytes_max: int = 256 * 1024 * 1024


def check_members(members: dict[str, str]) -> None:
    """Raises ValueError."""
    group_config.check_members(members, "hybrid.listen")


def check_regions(regions: dict[str, str]) -> None:
    """Raises ValueError."""
    for name, region in regions.items():
        if not region or "/" in region:
            raise ValueError(
                f'gives "{name}" the region "{region}"; keys name regions, so one has 1 or more characters, no slash'
            )


def wrong(config: NodeConfig) -> tuple[str, str] | None:
    """What no setting can say alone: the setting to look at, and what is wrong."""
    group = config.hybrid
    prefixes = sorted(prefix for prefix, kind in config.classes.items() if kind == "hybrid")
    if prefixes and not group.members:
        return "classes", f'"{prefixes[0]}" is hybrid, and there are no members: set hybrid.members and hybrid.regions'
    if not group.members:
        return None
    if config.name not in group.members:
        return "hybrid.members", (
            f"hybrid.members names {', '.join(sorted(group.members))}, not this node, {config.name}; add its address"
        )
    if odd := sorted(set(group.regions) ^ set(group.members)):
        missing, there = ("regions", "members") if odd[0] in group.members else ("members", "regions")
        return "hybrid.regions", (
            f"hybrid.{there} names {odd[0]}, and hybrid.{missing} does not; each member has an address and a region"
        )
    if strangers := sorted(set(group.founders) - set(group.members)):
        return "hybrid.founders", (
            f"hybrid.founders names {strangers[0]}, who is not among hybrid.members; add its address and region"
        )
    if group.founders and set(group.regions.values()) - {group.regions[founder] for founder in group.founders}:
        new = sorted(set(group.regions.values()) - {group.regions[founder] for founder in group.founders})
        return "hybrid.founders", (
            f"hybrid.founders has nobody in {new[0]}; regions stay as the group began, so give members one of theirs"
        )
    if group.regions[config.name] != config.region:
        return "hybrid.regions", (
            f"hybrid.regions puts this node, {config.name}, into {group.regions[config.name]}, and its region is "
            f"{config.region}; make them the same"
        )
    listen = group.listen or group.members[config.name]
    consensus = config.consensus
    others = {
        "listen": config.listen,
        "http": config.http,
        "the port of [consensus]": consensus.listen or consensus.members.get(config.name, ""),
    }
    for name, address in others.items():
        if address == listen:
            return f"hybrid.{'listen' if group.listen else 'members'}", (
                f"{name} and the port of [hybrid] of this node are both {listen}; give them different ports"
            )
    if not config.key and not config.tls.on:
        for address in (listen, *group.members.values()):
            if not is_loopback(address):
                return "hybrid.members", (
                    f"members at {address} can be reached from other machines, but there is no key; set key or [tls]"
                )
    return None


__all__ = ["Hybrid"]

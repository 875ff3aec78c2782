"""What a node is told of its group: the members that order strong keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from nova.errors import ConfigError
from nova.server.addresses import is_loopback, split_address

if TYPE_CHECKING:
    from nova.server.config import NodeConfig


class Consensus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The group of members that order strong keys.

    members      name -> HOST:PORT of every member that is known, this node included; empty: no group
    listen       where this member listens; default: its address among the members
    founders     who began the group; default: all members. A member that is added later names those, not itself
    protocol     what the group began with: raft, paxos or epaxos
    lease_reads  reads of consistency `lease` trust clocks (raft); strict ones go through the log then
    tick_ms      an election takes some tens of ticks; the same at all members
    timeout_ms   a call without an answer for so long fails
    bytes_max    of all strong keys and values; more is refused
    adaptive     let what the nodes measure choose between raft and paxos; the same at all members
    policy       by which rules: measured or classic (`nova.consensus.adaptive`)
    """

    members: dict[str, str] = {}
    listen: str = ""
    founders: list[str] = []
    protocol: str = "raft"
    lease_reads: bool = False
    tick_ms: int = 20
    timeout_ms: int = 10_000
    bytes_max: int = 256 * 1024 * 1024
    adaptive: bool = False
    policy: str = "measured"


def check_classes(classes: dict[str, str]) -> None:
    """Raises ValueError."""
    from nova.store.classes import KeyClasses
    from nova.sync.membership import CLASSES_TEXT_MAX  # most configurations name none, and the store costs a start

    if classes:
        # Nodes tell each other theirs with every word about a member.
        if (size := sum(len(prefix) + len(kind) for prefix, kind in classes.items())) > CLASSES_TEXT_MAX:
            raise ValueError(
                f"has prefixes and classes of {size} characters; the limit is {CLASSES_TEXT_MAX}: use shorter prefixes"
            )
        try:
            KeyClasses(classes)
        except ConfigError as error:
            raise ValueError(str(error)) from None


def check_members(members: dict[str, str], listen: str = "consensus.listen") -> None:
    """Raises ValueError."""
    for name, address in members.items():
        try:
            if split_address(address)[1] == 0:
                raise ValueError(f"has the port 0, where nobody listens; give the port of the member's {listen}")
        except ValueError as error:
            raise ValueError(f'gives "{name}" the address "{address}", which {error}') from None
    if len(set(members.values())) < len(members):
        raise ValueError("names one address twice; each member has its own")


def check_listen(address: str) -> None:
    """Raises ValueError."""
    if address:
        split_address(address)


def check_protocol(protocol: str) -> None:
    """Raises ValueError."""
    from nova.consensus.protocols import CRASH_FAULTS

    if protocol not in CRASH_FAULTS:
        raise ValueError(f"is no protocol that a node can begin a group with; use one of {', '.join(CRASH_FAULTS)}")


def check_policy(policy: str) -> None:
    """Raises ValueError."""
    from nova.consensus.adaptive import POLICIES

    if policy not in POLICIES:
        raise ValueError(f"is no policy; use one of {', '.join(POLICIES)}")


def wrong(config: NodeConfig) -> tuple[str, str] | None:
    """What no setting can say alone: the setting to look at, and what is wrong."""
    group = config.consensus
    strong = sorted(prefix for prefix, kind in config.classes.items() if kind == "strong")
    if strong and not group.members:
        return "classes", f'"{strong[0]}" is {config.classes[strong[0]]}, and there is no group: set consensus.members'
    if not group.members:
        return None
    if config.name not in group.members:
        return "consensus.members", (
            f"consensus.members names {', '.join(sorted(group.members))}, not this node, {config.name}; add its address"
        )
    strangers = sorted(set(group.founders) - set(group.members))
    if strangers:
        return "consensus.founders", (
            f"consensus.founders names {strangers[0]}, who is not among consensus.members; add its address"
        )
    listen = group.listen or group.members[config.name]
    for name in ("listen", "http"):
        if getattr(config, name) == listen:
            return f"consensus.{'listen' if group.listen else 'members'}", (
                f"{name} and the group's port of this node are both {listen}; give them different ports"
            )
    if group.lease_reads and group.protocol != "raft":
        return "consensus.lease_reads", f"consensus.lease_reads needs the protocol raft, not {group.protocol}"
    if not config.key and not config.tls.on:
        for address in (listen, *group.members.values()):
            if not is_loopback(address):
                return "consensus.members", (
                    f"members at {address} can be reached from other machines, but there is no key; set key or [tls]"
                )
    return None


__all__ = ["Consensus"]

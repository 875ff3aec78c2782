"""Groups whose members apply concurrent commands in different orders, and what their clients are promised.

A client carries what it has seen (`Frontier`) from member to member. Whatever fails, it reads what it wrote, and all
that it read before; in the end all members hold the same, and every acknowledged command, once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from nova.consensus.frontier import Frontier
from nova.consensus.replicated import Answered, ReadAnswered
from nova.errors import UnavailableError
from nova.sim import machine
from nova.sim.group import Client, Group, Read, Subject
from nova.types import NodeId


class ConvergentGroup(Group):
    """A `Group` whose clients ask for sessions in place of one order in real time."""

    def __init__(self, subject: Subject, seed: int, **options: Any) -> None:
        self._frontiers: defaultdict[int, Frontier] = defaultdict(Frontier)
        self._seen: defaultdict[tuple[int, str], set[int]] = defaultdict(set)
        self._at: NodeId = ""
        super().__init__(subject, seed, **options)

    def _read(self, client: Client, touched: set[NodeId]) -> None:
        client.reading = self._serial
        self._by_read[client.reading] = client
        assert client.node is not None
        try:
            replica = self.world[client.node].replica
            out = replica.read(client.reading, machine.get(client.key), self._frontiers[client.name])
        except UnavailableError:
            self._by_read.pop(client.reading)
            client.reading = None
            return
        self.world.submit(client.node, out)

    def _event(self, node: NodeId, event: Any) -> None:
        if isinstance(event, Answered | ReadAnswered):
            self._at = node
        super()._event(node, event)

    def _saw(self, client: Client) -> None:
        """The client was answered by a member that has so much."""
        self._frontiers[client.name] = self._frontiers[client.name].join(self.world[self._at].replica.frontier)

    def _answered(self, command: Any, outcome: Any) -> None:
        client = self._by_command.get((command.session, command.sequence, b"" if command.session else command.data))
        before = client.sequence if client is not None else 0
        super()._answered(command, outcome)
        if client is None or client.command is not None:
            return
        self._saw(client)
        if client.session and client.sequence == before + 1:
            self._seen[client.name, client.key].add(client.value)

    def _read_answered(self, id: int, data: bytes) -> None:
        client = self._by_read.pop(id, None)
        if client is None:
            return
        client.reading = None
        self.acknowledged += 1
        values = machine.answer(data) or []
        self.reads.append(Read(client.key, values, client.began, self.world.now))
        seen = self._seen[client.name, client.key]
        lost = seen.difference(values)
        assert not lost, f"I10: client {client.name} reads {client.key} at {self._at} without {sorted(lost)}"
        seen.update(values)
        self._saw(client)

    def _key_violations(self, key: str, final: list[int]) -> list[str]:
        found: list[str] = []
        place = set(final)
        if len(place) != len(final):
            found.append(f"I8: {key} holds an append twice")
        found += [
            f"I8: {key} holds {value}, which nobody appended to it"
            for value in final
            if value not in self.appends or self.appends[value].key != key
        ]
        found += [
            f"I10: append {append.value} to {key} was acknowledged and is not there"
            for append in self.appends.values()
            if append.key == key and append.end is not None and append.value not in place
        ]
        found += [
            f"I10: a read of {key} at {read.begin} saw {sorted(set(read.values) - place)}, which are not there"
            for read in self.reads
            if read.key == key and not place.issuperset(read.values)
        ]
        return found


def group_of(subject: Subject, seed: int, **options: Any) -> Group:
    """The group that is asked what this subject promises; see `Group`."""
    return (ConvergentGroup if subject.convergent else Group)(subject, seed, **options)


__all__ = ["ConvergentGroup", "group_of"]

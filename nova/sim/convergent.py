"""Groups whose members apply concurrent commands in different orders, and what their clients are promised.

A client carries what it has seen (`Frontier`) from member to member. Whatever fails, it reads what it wrote, and all
that it read before; in the end all members hold the same, and every acknowledged command, once.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from nova.consensus.core import Command
from nova.consensus.frontier import Frontier
from nova.consensus.replicated import Answered, ReadAnswered
from nova.errors import UnavailableError
from nova.sim import machine
from nova.sim.group import Append, Client, Group, Read, Subject
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


class RegionalGroup(ConvergentGroup):
    """For `hybrid`: clients stay in their region, and write keys that it owns; of these they are promised more.

    A key's values only grow. So its history is linearizable if each read holds every append that was acknowledged
    before it began, none that began after it ended, and reads hold each other in an order that fits real time.
    """

    def __init__(self, subject: Subject, seed: int, **options: Any) -> None:
        self._owned: list[tuple[str, Read]] = []
        super().__init__(subject, seed, **options)

    @property
    def _regions(self) -> dict[NodeId, str]:
        regions: dict[NodeId, str] = self.epoch.options["regions"]
        return regions

    def _home(self, name: int) -> str:
        regions = sorted(set(self._regions.values()))
        return regions[name % len(regions)]

    def _near(self, client: Client, up: list[NodeId]) -> list[NodeId]:
        return [node for node in up if self._regions[node] == self._home(client.name)]

    def _begin(self, client: Client, up: list[NodeId], touched: set[NodeId]) -> None:
        if near := self._near(client, up):
            super()._begin(client, near, touched)

    def _give_up(self, client: Client, up: list[NodeId], touched: set[NodeId]) -> None:
        if near := self._near(client, up):
            super()._give_up(client, near, touched)

    def _submit(self, client: Client, command: Command, touched: set[NodeId]) -> None:
        if command.session and client.command is None:  # a new append: to a key of this region
            del self.appends[client.value]
            client.key = f"{self._home(client.name)}{client.key}"
            self.appends[client.value] = Append(client.key, client.value, self.world.now)
            data = machine.append(client.key, client.value)
            command = Command(command.session, command.sequence, data, client.key.encode())
        super()._submit(client, command, touched)

    def _read(self, client: Client, touched: set[NodeId]) -> None:
        regions = sorted(set(self._regions.values()))
        client.key = f"{regions[self._random.randrange(len(regions))]}{client.key}"
        super()._read(client, touched)

    def _read_answered(self, id: int, data: bytes) -> None:
        client = self._by_read.get(id)
        super()._read_answered(id, data)
        if client is not None and client.key.startswith(self._home(client.name)):
            self._owned.append((client.key, self.reads[-1]))

    def _key_violations(self, key: str, final: list[int]) -> list[str]:
        found = super()._key_violations(key, final)
        appends = [append for append in self.appends.values() if append.key == key]
        reads = sorted((read for owned, read in self._owned if owned == key), key=lambda read: len(read.values))
        seen = set[int]()
        for read in reads:
            values = set(read.values)
            if missing := [
                a.value for a in appends if a.end is not None and a.end < read.begin and a.value not in values
            ]:
                found.append(f"I10: a read of {key} at {read.begin} lacks {missing}, acknowledged before")
            if early := [a.value for a in appends if a.begin > read.end and a.value in values]:
                found.append(f"I10: a read of {key} that ended at {read.end} has {early}, asked for later")
            if not values >= seen:
                found.append(f"I10: a read of {key} at {read.begin} lacks {sorted(seen - values)} of a smaller one")
            # One that began behind the end of this one may not hold less.
            if read.end < max((other.begin for other in reads if len(other.values) < len(values)), default=-1):
                found.append(f"I10: a read of {key} ended at {read.end}, and a later one holds less")
            seen = values
        return found


def group_of(subject: Subject, seed: int, **options: Any) -> Group:
    """The group that is asked what this subject promises; see `Group`."""
    if subject.name == "hybrid":
        return RegionalGroup(subject, seed, **options)
    return (ConvergentGroup if subject.convergent else Group)(subject, seed, **options)


__all__ = ["ConvergentGroup", "group_of"]

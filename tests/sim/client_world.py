"""Clients of a simulated group: the real cores of client and port, with streams that break, in virtual time."""

from __future__ import annotations

from itertools import count

from test_client_scenarios import Cell

from nova.consensus.answering import Answering, ServingOptions
from nova.consensus.asking import Asking
from nova.consensus.callers import Many
from nova.consensus.core import OverloadedError, UnknownOutcomeError
from nova.consensus.dialogue import Open, Propose
from nova.errors import PeerError, UnavailableError
from nova.types import Outputs

MS = 1_000_000
TICK_NS = 10 * MS


class Told:
    """Who waits: what it was told, and when."""

    def __init__(self, world):
        self._world, self.begun = world, world.now
        self.result = self.error = self.at = None

    def done(self):
        return self.at is not None

    def set_result(self, result):
        self.result, self.at = result, self._world.now

    def set_exception(self, error):
        self.error, self.at = error, self._world.now

    @property
    def verdict(self):
        """True: applied. False: not, and will not be. None: not known."""
        if self.at is None or isinstance(self.error, UnknownOutcomeError):
            return None
        return self.error is None


class Stream:
    def __init__(self, client, node):
        self.client, self.node, self.alive = client, node, True


class Net(Cell):
    """A Raft group whose members have ports. `options` of the ports."""

    delay_ns = 200_000

    def __init__(self, seed, *, serving=None, **options):
        self.ports = {}
        self.port_options = serving or ServingOptions()
        self.clients_there = []
        super().__init__(seed, **options)

    def port(self, node):
        """The port of a member, in its present life."""
        replica = self.world[node].replica
        known = self.ports.get(node)
        if known is None or known[0] is not replica:

            def submit(command):
                replica.config = self.config
                replica.submit(command)
                self.world.submit(node, Outputs())

            core = Answering(submit, replica.forget, command_bytes_max=100_000, options=self.port_options)
            known = self.ports[node] = replica, core, set()
        return known

    def _event(self, node, event):
        super()._event(node, event)
        if node in self.ports and hasattr(event, "outcome"):
            _, port, _ = self.port(node)
            port.answered(event.command, event.outcome, event.position)
            self.send(port)

    def held(self, key):
        self.world.mend()
        assert self.world.run(until=lambda: self.leader is not None, ticks_max=500)
        self.open()  # members that all restarted hold equally little, until something is committed
        return super().held(key)

    def send(self, port):
        for stream, reply in port.take():
            self.world.at(self.delay_ns, lambda stream=stream, reply=reply: stream.client.hear(stream, reply))

    def deliver(self, stream, question):
        if not stream.alive or stream.node not in self.world.up:
            return
        _, port, streams = self.port(stream.node)
        if stream not in streams:
            return  # it was opened in an earlier life
        match question:
            case Propose():
                port.propose(stream, question)
            case Open():
                port.open(stream, question)
        self.send(port)

    def client(self, first=None, **options):
        client = SimClient(self, first, **options)
        self.clients_there.append(client)
        return client

    def idle(self):
        return all(not client.core.waiting for client in self.clients_there)


class SimClient:
    def __init__(self, cell, first=None, *, patience=30, **options):
        self.cell = cell
        numbers = count(len(cell.clients_there) * 1_000_000)
        self.core = Asking(lambda: next(numbers).to_bytes(16, "big"), patience=patience, **options)
        self.stream = None
        self.moves = 0
        self.go(first or cell.leader)
        cell.world.at(TICK_NS, self._tick)

    def ask(self, *commands):
        """A `Told` for these commands, or the error that refused them at once, as one."""
        told = Told(self.cell.world)
        try:
            self.core.ask([(data, b"") for data in commands], told, 0.0)
        except (OverloadedError, UnavailableError) as error:
            told.set_exception(error)
        # What is asked in one turn of the loop goes as one.
        self.cell.world.at(0, self.flush)
        return told

    def go(self, node):
        """A new stream, to this member."""
        self.hang_up()
        self.moves += 1
        stream = self.stream = Stream(self, node)
        if node in self.cell.world.up:
            _, port, streams = self.cell.port(node)
            port.connected(stream)
            streams.add(stream)
        self.core.linked(stream)
        self.flush()

    def hang_up(self):
        stream, self.stream = self.stream, None
        if stream is None:
            return
        stream.alive = False
        if stream.node in self.cell.world.up:
            _, port, streams = self.cell.port(stream.node)
            if stream in streams:
                streams.discard(stream)
                port.disconnected(stream)
        self.core.unlinked(stream)

    def flush(self):
        for stream, question in self.core.take():
            self.cell.world.at(self.cell.delay_ns, lambda s=stream, q=question: self.cell.deliver(s, q))

    def hear(self, stream, reply):
        if not stream.alive:
            return
        try:
            self.core.step(stream, reply)
        except PeerError as error:
            raise AssertionError(error) from error
        self.flush()

    def _next(self):
        names = self.cell.world.names
        here = names.index(self.stream.node) if self.stream is not None else 0
        return names[(here + 1) % len(names)]

    def _tick(self):
        world = self.cell.world
        silent = self.core.tick(world.now, TICK_NS)
        if silent or self._gone():
            self.go(self._next())
        self.flush()
        world.at(TICK_NS, self._tick)

    def _gone(self):
        """The stream was broken by a member that fell."""
        if self.stream is None or self.stream.node not in self.cell.world.up:
            return True
        _, _, streams = self.cell.port(self.stream.node)
        return self.stream not in streams


__all__ = ["MS", "Many", "Net", "SimClient", "Told"]

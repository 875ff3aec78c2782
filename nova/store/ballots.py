"""Votes as a replica knows them: which wait for voters, what it votes for itself, and how they ended.

All of it comes back from the audit chain. What is asked is a function of the rows that are contended, all of those of
a key at once, so that replicas which hold the same ask the same, in whatever order it came to them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import msgspec

from nova.clock import VectorClock
from nova.conflict.audit import vote_body
from nova.conflict.detect import Conflict, Version
from nova.conflict.strategies.vote import Question, candidates_of
from nova.conflict.words import show
from nova.crdt.keyspace import Row, Write
from nova.types import Dot, NodeId

if TYPE_CHECKING:
    from nova.store.conflicts import Conflicts
    from nova.store.core import Replica

UNHEARD_MAX: Final = 1_000
CHECKS_MAX: Final = 200
OWN_MAX: Final = 20_000
"""So many ballots of our own are kept, at least, beyond the records that they are about."""

_unpack = msgspec.msgpack.Decoder().decode
_pack = msgspec.msgpack.Encoder().encode

Choices = Mapping[str, Mapping[NodeId, str]]
"""path -> (voter -> id of the candidate that it chose)."""
Ended = tuple[Choices, Mapping[str, str]]
"""How a vote ended: who chose what, and path -> winner where a majority agreed."""


def version_of(row: Row) -> Version:
    """A row of a key as a version of a conflict."""
    return Version(_unpack(row.value), VectorClock(row.write.clock), row.write.stamp, node_of(row.write))


def node_of(write: Write) -> NodeId:
    """The node that wrote it."""
    actor: str = write.actor
    return actor.rpartition("~")[0] or actor


class Ballots:
    """The votes of one replica. Records are those of `Conflicts`, with what voters are asked in their resolution."""

    def __init__(self, conflicts: Conflicts, replica: Replica) -> None:
        self._conflicts, self._replica = conflicts, replica
        self._open: dict[str, dict[str, Any]] = {}
        self._own: dict[str, tuple[int, dict[str, str]]] = {}  # (token, path -> candidate)
        self._heard: dict[str, Choices] = {}
        self._ended: dict[str, tuple[int, Ended]] = {}  # with the token when that is on disk
        self._unheard: dict[str, str] = {}
        self._checked: dict[str, int] = {}

    # -- what is asked --

    def add(self, record: dict[str, Any], revision: int | None = None) -> None:
        """The record of a conflict that voters are asked about; of rows of this revision, if that is known."""
        self._open[record["id"]] = record
        if revision is not None:
            self._checked[record["id"]] = revision

    def cast(self, record: Mapping[str, Any], choices: Mapping[str, str]) -> list[bytes]:
        """What this node votes for: audit records, before whose commit nobody hears of it. What it said once stays."""
        self._cast(record["id"], self._replica.next_token, dict(choices))
        body = {"voter": self._replica.node, "cast": dict(choices)}
        return self._conflicts.note("vote", record["id"], record["key"], body, self._replica.now_ms())

    def _cast(self, id: str, token: int, choices: dict[str, str]) -> None:
        self._own[id] = token, choices
        if len(self._own) > OWN_MAX:
            oldest = next(iter(self._own))
            kept = self._own.pop(oldest)
            if oldest in self._open or kept[0] > self._replica.durable_token:
                self._own[oldest] = kept

    def again(
        self, record: dict[str, Any], contended: Mapping[str, Sequence[Row]], arrived: Mapping[Dot, int]
    ) -> list[bytes]:
        """A crash took operations, and left the record of their conflict: now they came again.

        If it left that without our ballot, then nobody has heard of one.
        """
        self.add(record)
        if record["id"] in self._own:
            return []  # what was told stays
        ballot = self.chosen((record["id"], ""), contended, record["resolution"]["vote"], arrived)
        return self.cast(record, ballot) if ballot else []

    def chosen(
        self,
        ids: tuple[str, str],
        contended: Mapping[str, Sequence[Row]],
        questions: Iterable[Mapping[str, Any]],
        arrived: Mapping[Dot, int],
    ) -> dict[str, str]:
        """What this node votes for, if it is asked: for what it voted for, else for what was here first.

        ids      of this conflict, which may have been on record before, and of the one about this key before it
        arrived  what came just now, in order
        """
        earlier = next((self._own[id][1] for id in ids if id in self._own), {})
        ballot = {}
        for question in questions:
            path = question["path"]
            if self._replica.node not in question["voters"]:
                continue
            choice = earlier.get(path, "")
            if choice not in question["candidates"]:
                items = contended[path]
                first = min(items, key=lambda row: (arrived.get(row.write.dot, -1), row.write.stamp, row.write.dot))
                choice = candidates_of([version_of(first)])[0].id
            ballot[path] = choice
        return ballot

    def open(self) -> dict[str, dict[str, Any]]:
        """The records that wait for voters, by id. One whose key changed meanwhile gives way to what is asked now.

        cost  little for keys that did not change; of the others, CHECKS_MAX are looked at in each call
        """
        out, checks = {}, 0
        for id, record in list(self._open.items()):
            rows = self._replica.space.get(record["key"])
            if rows is not None and self._checked.get(id) == rows.revision:
                out[id] = record
            elif checks < CHECKS_MAX:
                checks += 1
                if rows is None or self._conflicts.status(record) != "pending":
                    self._close(id, record["key"])
                elif self._conflicts.shown(record["key"]) != id:  # somebody settled a part of it
                    self._close(id, "")
                    self._replica.examine_again(record["key"])
                else:
                    self._checked[id] = rows.revision
                    out[id] = record
        return out

    def among(self, conflict_id: str) -> bool:
        """Whether it waits for voters, as far as that is known without a look at its key."""
        return conflict_id in self._open

    def _close(self, id: str, key: str) -> None:
        """It is over; if there is a key, then by an outcome that may have been told."""
        self._open.pop(id, None)
        self._heard.pop(id, None)
        self._checked.pop(id, None)
        if key and id not in self._ended and len(self._unheard) < UNHEARD_MAX:
            self._unheard[id] = key

    def forget(self, id: str) -> None:
        """Its record goes."""
        self._close(id, "")  # our ballot stays: a crash may take what came after this conflict, and bring it back
        self._ended.pop(id, None)
        self._unheard.pop(id, None)

    # -- who votes for what --

    def ballot(self, conflict_id: str) -> dict[str, str] | None:
        """What this node votes for, path -> candidate; None before that is on disk, or if it has no vote."""
        token, choices = self._own.get(conflict_id, (0, {}))
        return choices if choices and token <= self._replica.durable_token else None

    def heard(self, conflict_id: str, ballots: Choices) -> None:
        """The ballots that are known so far, for whoever looks."""
        if conflict_id in self._open:
            self._heard[conflict_id] = ballots

    def progress(self, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Of a vote: path -> who is asked, and who is known to have voted for which value."""
        id = record["id"]
        _, (known, _) = self._ended.get(id, (0, (self._heard.get(id, {}), {})))
        own = self._own.get(id, (0, {}))[1]
        out: dict[str, dict[str, Any]] = {}
        for question in record["resolution"].get("vote", ()):
            path, values = question["path"], dict(zip(question["candidates"], question["values"], strict=True))
            ballots = {**({self._replica.node: own[path]} if path in own else {}), **known.get(path, {})}
            out[path] = {
                "voters": question["voters"],
                "ballots": {voter: values.get(choice) for voter, choice in sorted(ballots.items())},
            }
        return out

    # -- how it ended --

    def waits(self, record: Mapping[str, Any]) -> bool:
        """Whether voters are still to decide it: not if they are done, and it is somebody's turn now."""
        return "vote" in record["resolution"] and not self._left_to_somebody(record)

    def _left_to_somebody(self, record: Mapping[str, Any]) -> bool:
        if record["id"] not in self._ended or not record["resolution"].get("vote_then_waits"):
            return False
        if record["resolution"].get("vote_waits_too"):
            return True
        _, (_, winners) = self._ended[record["id"]]
        return any(question["path"] not in winners for question in record["resolution"]["vote"])

    def ended(self, conflict_id: str) -> Ended | None:
        """How a vote ended, if this node knows, and that is on disk."""
        token, ended = self._ended.get(conflict_id, (0, None))
        return ended if conflict_id not in self._open and token <= self._replica.durable_token else None

    def unheard(self) -> dict[str, str]:
        """Votes that are over, nobody said how: id -> key."""
        return self._unheard

    def end(self, conflict_id: str, key: str, ballots: Choices, winners: Mapping[str, str]) -> bool:
        """Note in the chain how a vote ended, once; nothing, if its conflict is not on record here.

        returns  whether that is how the vote can have ended
        """
        record = self._conflicts.held(conflict_id)
        if record is None or record["key"] != key or "vote" not in record["resolution"]:
            return True
        if not _possible(record["resolution"]["vote"], ballots, winners):
            return False
        self._unheard.pop(conflict_id, None)
        if conflict_id in self._ended:
            return True
        self._ended[conflict_id] = self._replica.next_token, (ballots, winners)
        now = self._replica.now_ms()
        for body in _bodies(record["resolution"]["vote"], ballots, winners):
            self._replica.note("vote", conflict_id, key, body, now)
        if self._left_to_somebody(record):
            self._close(conflict_id, "")
        return True

    def fail(self, conflict_id: str, key: str, reason: str) -> None:
        """The outcome of a vote could not be written: somebody has to decide."""
        if (record := self._open.get(conflict_id)) is not None:
            body = {"error": reason, "strategy": "consensus_vote"}
            self._replica.note("fail", conflict_id, key, body, self._replica.now_ms())
            self._failed(record)

    def _failed(self, record: dict[str, Any]) -> None:
        self._close(record["id"], "")
        record["resolution"].pop("vote", None)

    def replayed(self, type: str, record: dict[str, Any], body: Mapping[str, Any]) -> None:
        """Take an event of the chain back."""
        id = record["id"]
        if type == "fail":
            self._failed(record)
        elif "cast" in body:
            self._cast(id, 0, body["cast"])
        elif "choices" in body:
            _, (ballots, winners) = self._ended.get(id, (0, ({}, {})))
            won = {body["path"]: body["winner"]} if body["winner"] is not None else {}
            self._ended[id] = 0, ({**ballots, body["path"]: body["choices"]}, {**winners, **won})
            if self._left_to_somebody(record):
                self._close(id, "")


def question_of(conflict: Conflict) -> Conflict:
    """The same conflict under an id that also says which of its writes stand against each other at which path.

    Two nodes may know the same writes, and one of them already that somebody settled a part: that is not one question.
    """
    stands = [
        (path, [(version.origin, version.timestamp) for version in versions])
        for path, versions in sorted(conflict.siblings.items())
    ]
    about = f"{conflict.resource_id}\0{blake2b(_pack(stands), digest_size=16).hexdigest()}"
    named = Conflict(
        about, conflict.kind, conflict.versions, conflict.types, conflict.severity, conflict.paths, conflict.siblings,
        conflict.base, conflict.auto_resolvable, conflict.reason, conflict.contentions, conflict.broken,
    )  # fmt: skip
    return named.replace(resource_id=conflict.resource_id)  # which keeps the id


def asked(question: Question) -> dict[str, Any]:
    """A question as it stands in a record."""
    return {
        "path": question.path,
        "voters": list(question.voters),
        "timeout_ms": question.timeout_ms,
        "candidates": [candidate.id for candidate in question.candidates],
        "values": [candidate.value for candidate in question.candidates],
    }


def _possible(questions: Sequence[Mapping[str, Any]], ballots: Choices, winners: Mapping[str, str]) -> bool:
    """Whether a vote about these questions can have ended so: voters and candidates are known, winners have enough."""
    by_path = {question["path"]: question for question in questions}
    if ballots.keys() - by_path.keys() or winners.keys() - by_path.keys():
        return False
    for path, choices in ballots.items():
        question = by_path[path]
        if not choices.keys() <= set(question["voters"]) or not set(choices.values()) <= set(question["candidates"]):
            return False
    return all(
        2 * list(ballots.get(path, {}).values()).count(winner) > len(by_path[path]["voters"])
        for path, winner in winners.items()
    )


def _bodies(
    questions: Sequence[Mapping[str, Any]], ballots: Choices, winners: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """The `vote` events of an ended vote, one for each path: in words, and as ids."""
    for question in questions:
        path, winner = question["path"], winners.get(question["path"])
        words = {id: show(value) for id, value in zip(question["candidates"], question["values"], strict=True)}
        choices = dict(sorted(ballots.get(path, {}).items()))
        body = vote_body(
            f"{path or 'the value'}: {' or '.join(words.values())}?",
            {voter: words.get(choice, choice) for voter, choice in choices.items()},
            voters=len(question["voters"]),
            needed=len(question["voters"]) // 2 + 1,
            outcome=words.get(winner, winner) if winner is not None else None,
        )
        yield {**body, "path": path, "choices": choices, "winner": winner}


__all__ = ["Ballots", "Choices", "Ended", "asked", "node_of", "question_of", "version_of"]

"""What policies, votes and people do to a conflict becomes events, and the events tell it in words."""

from __future__ import annotations

import pytest

from nova.clock import VectorClock
from nova.conflict.audit import (
    AuditLog,
    RecordedVotes,
    decision_event,
    describe,
    escalation_event,
    events_of,
    explain,
)
from nova.conflict.detect import MISSING, ConflictDetector, Version
from nova.conflict.policy import PolicyBuilder, PolicyManager
from nova.conflict.policy.conditions import path_matches
from nova.conflict.strategies import LastWriteWins
from nova.conflict.strategies.manual import ManualQueue
from nova.conflict.strategies.vote import Ballot, ConsensusVote
from nova.errors import UnavailableError


def conflict_at(**paths):
    def row(value, origin, stamp):
        return Version(value, VectorClock({origin: stamp}), stamp << 16, origin)

    siblings = {f"/{name}": [row(a, "eu", 1000), row(b, "us", 2000)] for name, (a, b) in paths.items()}
    return ConflictDetector().examine("vm/1", "vm", siblings)


class Voters:
    def __init__(self, *votes, error=None):
        self.votes, self.error = votes, error

    def ask(self, question):
        by_value = {candidate.value: candidate.id for candidate in question.candidates}
        for voter, choice in self.votes:
            yield Ballot(voter, by_value.get(choice, str(choice)))
        if self.error is not None:
            raise self.error


def texts(log):
    return "\n".join(describe(event) for event in log.events())


def test_a_settled_conflict_is_a_detection_a_resolution_and_what_escalation_asks_for():
    policy = (
        PolicyBuilder("production")
        .default("lww")
        .escalate("cpu", path_matches("cpu"), action="require_approval", to="ops")
        .build()
    )
    conflict = conflict_at(cpu=(4, 8))
    found = PolicyManager([policy]).resolve(conflict)
    log = AuditLog()
    assert log.settled(conflict, found, 7) == 3
    assert [event.type for event in log.events(conflict=conflict.id)] == ["detect", "resolve", "escalate"]
    told = explain("vm/1", {"cpu": 8}, [], log.events())
    assert "was settled by lww; 1 value discarded" in told
    assert "was escalated: cpu: " in told
    assert "; require approval, to ops" in told
    assert "  discarded: 4 of eu at /cpu" in told


def test_what_could_not_be_settled_is_a_failure_with_its_reason():
    conflict = conflict_at(cpu=(4, 8))
    with pytest.raises(UnavailableError) as failed:
        ConsensusVote(["a", "b"], Voters(error=UnavailableError("no link to b")), otherwise=None).resolve(conflict)
    events = events_of(conflict, failed.value, 7)
    assert [event[0] for event in events] == ["detect", "fail"]
    log = AuditLog()
    log.append_many(events)
    assert "could not be settled: /cpu: no link to b" in texts(log) or "could not be settled: no link to b" in texts(
        log
    )


def test_a_vote_is_an_event_whoever_wins():
    log, conflict = AuditLog(), conflict_at(cpu=(4, 8))

    def voted(voters, *votes, error=None):
        asker = RecordedVotes(Voters(*votes, error=error), lambda event: log.append(*event), lambda: 9)
        return ConsensusVote(voters, asker, otherwise="lww").resolve(conflict)

    found = voted(["a", "b", "c"], ("a", 8), ("a", 8), ("x", 4), ("b", "?"), ("b", 8), ("c", 4))
    assert found.settled == {"/cpu": 8}
    voted(["a", "b"], ("a", 8), ("b", 4))
    voted(["a", "b"], ("a", 8), error=TimeoutError("time is up"))
    won, tied, broken = log.events(type="vote")
    assert won.body == {
        "question": "/cpu: 4 or 8?", "ballots": {"a": "8", "b": "8"}, "voters": 3, "needed": 2, "outcome": "8"
    }  # fmt: skip
    assert (won.time_ms, won.conflict_id, won.resource_id) == (9, conflict.id, "vm/1")
    assert (tied.body["ballots"], tied.body["outcome"]) == ({"a": "8", "b": "4"}, None)
    assert (broken.body["ballots"], broken.body["outcome"]) == ({"a": "8"}, None)
    assert "a 8 and b 8; 8 won (2 of 3 needed)" in texts(log)


def test_what_people_decide_or_leave_waiting_is_told():
    log, conflict, queue = AuditLog(), conflict_at(cpu=(4, 8), note=("x", "y")), ManualQueue(timeout_ms=100)
    case = queue.open(conflict, 1000)
    for escalation in queue.due(1250):
        log.append(*escalation_event(escalation, 1250))
    decision = queue.decide("vm/1", case.id, {"/cpu": 8, "/note": MISSING}, by="ann", now_ms=1300)
    log.append(*decision_event(decision))
    escalated, decided = log.events()
    assert (escalated.conflict_id, decided.conflict_id, decided.time_ms) == (conflict.id, conflict.id, 1300)
    told = explain("vm/1", {"cpu": 8}, [], [escalated, decided])
    for words in (
        "was escalated: undecided for 250 ms, level 1; notify, to on-call",
        f"ann decided conflict {conflict.id[:8]} on vm/1",
        "  /cpu shall be 8",
        "  /note shall be gone",
        "  discarded: 4 of eu at /cpu: ann decided for 8",
        '  discarded: "y" of us at /note: ann decided for nothing',
    ):
        assert words in told, told


def test_the_same_outcome_makes_the_same_events_on_every_replica():
    conflict = conflict_at(cpu=(4, 8))
    one, two = AuditLog(), AuditLog()
    for log in (one, two):
        log.settled(conflict, LastWriteWins().resolve(conflict), 5)
    assert one.mark == two.mark

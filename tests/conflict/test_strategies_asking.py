"""The two strategies that ask somebody: voters, and people."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.clock import VectorClock
from nova.conflict.detect import ConflictDetector, Contention, Version
from nova.conflict.strategies import (
    Ballot,
    Cast,
    ConsensusVote,
    ManualIntervention,
    ManualQueue,
    Tally,
    UndecidedError,
)
from nova.errors import KeyNotFoundError, LimitError, StaleContextError, UnavailableError, UsageError
from nova.types import Order
from tests.conflict.conflicts import at_paths, frozen, versions, whole

# ------------------------------------------------------------------------------------------------ votes


def test_a_majority_is_one_of_all_voters_not_of_those_who_answer():
    tally = Tally("abcde")
    assert [tally.cast(voter, "x") for voter in "ab"] == [Cast.COUNTED] * 2
    assert tally.winner is None
    tally.cast("c", "x")
    assert tally.winner == "x"
    silent = Tally("abcde")
    silent.cast("a", "x")
    silent.close()
    assert silent.winner is None
    assert silent.hopeless


def test_a_second_vote_counts_for_nothing_and_a_different_one_is_noted():
    tally = Tally("abc")
    tally.cast("a", "x")
    assert tally.cast("a", "x") is Cast.REPEATED
    assert tally.cast("a", "y") is Cast.EQUIVOCATION
    assert tally.counted == {"x": 1}
    assert tally.equivocations == [("a", "x", "y")]


def test_a_late_vote_counts_for_nothing():
    tally = Tally("abc")
    tally.cast("a", "x")
    tally.close()
    assert tally.cast("b", "x") is Cast.LATE
    assert tally.winner is None
    decided = Tally("abc")
    decided.cast("a", "x")
    decided.cast("b", "x")
    assert decided.cast("c", "y") is Cast.LATE
    assert decided.counted == {"x": 2}


def test_a_removed_voter_loses_its_vote_and_the_majority_does_not_shrink():
    tally = Tally("abcde")
    for voter in "ab":
        tally.cast(voter, "x")
    tally.remove("b")
    assert tally.counted == {"x": 1}
    assert tally.cast("b", "x") is Cast.STRANGER
    for voter in "de":
        tally.remove(voter)
    assert tally.cast("c", "x") is Cast.COUNTED
    assert tally.winner is None  # two of the two who are left, but not three of five
    assert tally.hopeless


def test_a_stranger_has_no_vote_and_a_decision_stands():
    tally = Tally("abc")
    assert tally.cast("z", "x") is Cast.STRANGER
    tally.cast("a", "x")
    tally.cast("b", "x")
    tally.remove("a")
    assert tally.winner == "x"


def test_a_tie_is_hopeless_as_soon_as_it_is_one():
    tally = Tally("abcd")
    for voter, choice in zip("abc", "xxy", strict=True):
        tally.cast(voter, choice)
    assert not tally.hopeless
    tally.cast("d", "y")
    assert tally.hopeless
    assert tally.winner is None


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz")), max_size=20), st.integers(1, 5))
def test_a_winner_has_the_first_votes_of_more_than_half(log, size):
    voters = "abcde"[:size]
    tally = Tally(voters)
    first: dict[str, str] = {}
    winner = None
    for voter, choice in log:
        tally.cast(voter, choice)
        if voter in voters and voter not in first and winner is None:
            first[voter] = choice
            if list(first.values()).count(choice) * 2 > size:
                winner = choice
    assert tally.winner == winner


def test_voters_are_named_once():
    for voters in ([], ["a", "a"]):
        with pytest.raises(UsageError, match="name at least 1, and each once"):
            Tally(voters)


class Answers:
    """Voters who choose the candidate of an origin."""

    def __init__(self, *wishes: tuple[str, str], error: Exception | None = None) -> None:
        self.wishes, self.error, self.questions = wishes, error, []

    def ask(self, question):
        self.questions.append(question)
        if self.error is not None:
            raise self.error
        by_origin = {origin: each.id for each in question.candidates for origin in each.origins}
        return [Ballot(voter, by_origin.get(wish, wish)) for voter, wish in self.wishes]


def test_what_the_majority_chose_is_settled():
    asker = Answers(("n1", "a"), ("n2", "b"), ("n3", "a"))
    found = ConsensusVote(["n1", "n2", "n3"], asker).resolve(whole("old", "new"))
    assert found.value == "old"
    assert [(lost.value, lost.origin) for lost in found.discarded] == [("new", "b")]
    assert found.confidence == 0.9
    assert "2 of 3 voters" in found.explanation[0]


def test_a_majority_decides_what_no_rule_may_but_not_what_other_resources_say():
    vote = ConsensusVote(["n1", "n2", "n3"], Answers(("n1", "a"), ("n3", "a")))
    tie = ConsensusVote(["n1", "n2", "n3"], Answers(("n1", "a"), ("n2", "b"), ("n3", "c")))
    conflict = whole("old", "new").replace(auto_resolvable=False, reason="two of them")
    assert not vote.resolve(conflict).pending
    assert tie.resolve(conflict).pending
    assert vote.resolve(conflict.replace(contentions=(Contention("ip/1", ("x", "y")),))).pending
    assert vote.resolve(conflict.replace(broken=(("capacity", "too much"),))).pending
    agreed = whole("same", "same").replace(auto_resolvable=False, reason="two of them")
    assert vote.resolve(agreed).pending  # nobody was asked


@pytest.mark.parametrize(
    "asker",
    [
        Answers(("n1", "a"), ("n2", "b")),
        Answers(("n1", "a"), ("n1", "a"), ("n1", "a")),
        Answers(error=TimeoutError()),
        Answers(error=UnavailableError("nobody is there")),
        None,
    ],
)
def test_a_tie_a_time_out_and_nobody_to_ask_fall_to_the_next_strategy(asker):
    found = ConsensusVote(["n1", "n2", "n3"], asker, otherwise="lww").resolve(whole("old", "new"))
    assert found.value == "new"
    assert found.via == ("consensus_vote", "lww")
    with pytest.raises((UnavailableError, TimeoutError)):
        ConsensusVote(["n1", "n2", "n3"], asker, otherwise=None).resolve(whole("old", "new"))


def test_who_votes_for_what_is_no_candidate_or_twice_is_told():
    asker = Answers(("n1", "nonsense"), ("n1", "a"), ("n1", "b"), ("n2", "a"))
    found = ConsensusVote(["n1", "n2", "n3"], asker).resolve(whole("old", "new"))
    assert found.value == "old"
    assert len(found.alarms) == 2


def test_voters_are_asked_the_same_on_every_replica_and_not_where_all_agree():
    conflict = at_paths({"/x": [1, 2], "/y": [3, 3]})
    askers = Answers(("n1", "a")), Answers(("n1", "a"))
    for asker in askers:
        ConsensusVote(["n1"], asker).resolve(conflict)
    assert askers[0].questions == askers[1].questions
    assert [question.path for question in askers[0].questions] == ["/x"]


# ------------------------------------------------------------------------------------------------ people


def test_until_somebody_decides_the_base_stays_and_all_versions_are_readable():
    found = ManualIntervention().resolve(whole(2, 3, base=1))
    assert found.pending
    assert found.value == 1
    assert [version.value for version in found.siblings[""]] == [2, 3]
    assert found.discarded == ()
    assert ManualIntervention().resolve(whole(2, 3)).value == 3


def opened(*values):
    queue = ManualQueue(timeout_ms=100, levels=("operator", "lead"))
    return queue, queue.open(whole(*values, base=0), 1_000)


def test_a_manual_decision_is_a_compare_and_set_against_the_siblings_that_were_shown():
    queue, shown = opened(1, 2)
    third = ConflictDetector().examine("r", "register", {"": versions(1, 2, 3)})
    present = queue.open(third, 1_010)
    assert present.reopened == 1
    with pytest.raises(StaleContextError, match="stale decision: siblings changed") as caught:
        queue.decide("r", shown.id, {"": 2}, by="ann", now_ms=1_020)
    assert caught.value.current == present
    decision = queue.decide("r", present.id, {"": 2}, by="ann", now_ms=1_030)
    assert decision.settled == {"": 2}
    assert [lost.value for lost in decision.discarded] == [1, 3]
    for version in versions(1, 2, 3):
        assert decision.clock.compare(version.clock) is Order.AFTER
    with pytest.raises(KeyNotFoundError):
        queue.decide("r", present.id, {"": 2}, by="bob", now_ms=1_040)


def test_the_same_conflict_again_does_not_reopen_the_case():
    queue, shown = opened(1, 2)
    assert queue.open(whole(1, 2, base=0), 5_000) is shown
    assert queue.pending() == [shown]


def test_a_decision_names_every_contended_path_and_nothing_else():
    queue = ManualQueue()
    case = queue.open(at_paths({"/x": [1, 2], "/y": [1, 2]}), 0)
    for values in ({"/x": 1}, {"/x": 1, "/y": 2, "/z": 3}):
        with pytest.raises(UsageError, match="give a value for each of /x, /y"):
            queue.decide("r", case.id, values, by="ann", now_ms=1)


def test_what_waits_too_long_escalates_once_to_each_level():
    queue, _ = opened(1, 2)
    assert queue.due(1_099) == []
    first = queue.due(1_100)
    assert [(each.level, each.to, each.waited_ms) for each in first] == [(1, "operator", 100)]
    assert queue.due(1_150) == []
    queue.open(whole(1, 2, 3, base=0), 1_160)  # a newer write does not set the clock back
    assert [each.to for each in queue.due(1_200)] == ["lead"]
    assert queue.due(9_999) == []


def test_the_queue_is_bounded_and_takes_back_what_a_write_superseded():
    queue = ManualQueue(cases_max=1)
    queue.open(whole(1, 2), 0)
    other = ConflictDetector().examine("other", "register", {"": versions(1, 2)})
    with pytest.raises(LimitError, match="the limit is 1"):
        queue.open(other, 0)
    queue.withdraw("r")
    queue.withdraw("r")
    assert queue.open(other, 0).resource_id == "other"
    assert len(queue) == 1


def test_an_undecided_vote_says_what_was_counted():
    asker = Answers(("n1", "a"), ("n2", "b"))
    with pytest.raises(UndecidedError, match="no majority of 2 voters: 1 for"):
        ConsensusVote(["n1", "n2"], asker, otherwise=None).resolve(whole("x", "y"))


def test_what_waits_is_shown_alike_whatever_order_it_came_in():
    base = Version(0, VectorClock({"z": 1}), 1, "z")
    one, other = versions({"q": 1}, {"q": 2})
    found = [ConflictDetector().detect("r", *pair, base=base) for pair in ((one, other), (other, one))]
    assert frozen(ManualIntervention().resolve(found[0])) == frozen(ManualIntervention().resolve(found[1]))

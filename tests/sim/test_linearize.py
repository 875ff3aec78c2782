"""The linearizability checker beside its definition, and what it says of what does not fit."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.cli.app import run
from nova.errors import UsageError
from nova.sim.linearize import REFUSED, Call, KeyValue, Register, check_linearizable, read_history
from tests.models.linearize import linearizable

inputs = st.sampled_from([("read",), ("write", 1), ("write", 2), ("cas", 1, 2), ("cas", None, 1)])


@st.composite
def calls(draw):
    begin = draw(st.integers(0, 9))
    lost = draw(st.integers(0, 5)) == 0
    what = draw(inputs)
    output = draw(st.sampled_from([None, 1, 2])) if what[0] == "read" else draw(st.booleans())
    return Call(begin, None if lost else begin + draw(st.integers(0, 6)), what, output)


@settings(max_examples=400, deadline=None)
@given(st.lists(calls(), max_size=6))
def test_the_verdict_is_that_of_the_definition(history):
    verdict = check_linearizable(history, Register())
    assert verdict.ok is linearizable(history, Register())
    if verdict.ok is False:
        assert linearizable(list(verdict.prefix), Register())
        assert len(verdict.prefix) < len(history)


def served(clients, count, keys, seed, late=0.0):
    """A history of a server that does one call at a time, each at some instant between its beginning and its end."""
    chance = random.Random(seed)
    state = dict.fromkeys(range(keys), "")
    clock, history, busy = 0, [], {}
    while len(history) < count:
        clock += 1
        client = chance.randrange(clients)
        if client not in busy:
            key = chance.randrange(keys)
            what = chance.choice([("get",), ("put", f"{clock} "), ("append", f"{clock} ")])
            busy[client] = [clock, key, what, None, False]
        elif not busy[client][4]:  # it takes effect now
            _, key, what, _, _ = busy[client]
            if what[0] == "put":
                state[key] = what[1]
            elif what[0] == "append":
                state[key] += what[1]
            busy[client][3:] = [state[key] if what[0] == "get" else None, True]
        else:
            begin, key, what, output, _ = busy.pop(client)
            end = None if what[0] != "get" and chance.random() < late else clock
            history.append(Call(begin, end, what, output, key))
    return history + [Call(begin, None, what, None, key) for begin, key, what, *_ in busy.values() if what[0] != "get"]


@pytest.mark.parametrize("seed", range(10))
def test_what_a_server_did_is_linearizable_and_what_nobody_wrote_is_not(seed):
    history = served(20, 600, 4, seed, late=0.05)
    assert check_linearizable(history, KeyValue()).ok is True
    reads = [number for number, call in enumerate(history) if call.input == ("get",)]
    for number in reads[:: len(reads) // 3]:
        call = history[number]
        made_up = Call(call.begin, call.end, call.input, call.output + "nobody wrote this ", call.key)
        verdict = check_linearizable([*history[:number], made_up, *history[number + 1 :]], KeyValue())
        assert (verdict.ok, verdict.key) == (False, call.key)


def test_it_says_where_it_is_stuck():
    history = [Call(0, 1, ("write", 1)), Call(2, 3, ("write", 2)), Call(4, 5, ("read",), 1)]
    verdict = check_linearizable(history, Register())
    assert (verdict.ok, verdict.prefix, verdict.stuck) == (False, tuple(history[:2]), (history[2],))


def test_what_takes_too_long_is_unknown_and_never_wrong():
    history = [Call(0, 100, ("write", number)) for number in range(18)] + [Call(101, 102, ("read",), 99)]
    assert check_linearizable(history, Register(), entries_max=1_000).ok is None
    assert check_linearizable(history[:9] + history[-1:], Register()).ok is False


def test_a_call_that_never_came_back_may_never_have_happened():
    lost = Call(0, None, ("write", 1))
    for seen in (None, 1):
        assert check_linearizable([lost, Call(1, 2, ("read",), seen)], Register()).ok
    assert not check_linearizable([lost, Call(1, 2, ("read",), 1), Call(3, 4, ("read",), None)], Register()).ok


class Stack:
    """A model that refuses: there is nothing to pop from an empty one."""

    initial = ()

    def step(self, state, call):
        if call.input[0] == "push":
            return (*state, call.input[1])
        return state[:-1] if state and (call.end is None or state[-1] == call.output) else REFUSED


def test_a_lost_call_that_no_order_has_a_place_for_did_not_happen():
    assert check_linearizable([Call(0, None, ("pop",))], Stack()).ok
    history = [Call(0, 1, ("push", 1)), Call(0, None, ("pop",)), Call(2, 3, ("pop",), 1)]
    assert check_linearizable(history, Stack()).ok
    assert not check_linearizable([*history, Call(4, 5, ("pop",), 1)], Stack()).ok


@pytest.mark.parametrize("text", ["", "INFO  jepsen.util - 0 :invoke :boil nil", "{:process 0}", '{"begin": 1}'])
def test_a_file_that_is_no_history_is_refused(text):
    with pytest.raises(UsageError):
        read_history(text)


def test_calls_that_make_no_sense_are_refused():
    with pytest.raises(UsageError, match="ends after it begins"):
        check_linearizable([Call(2, 1, ("read",))], Register())
    with pytest.raises(UsageError, match="a register knows"):
        check_linearizable([Call(1, 2, ("boil",))], Register())


def test_files_are_checked_from_the_command_line(tmp_path, capsys):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"begin":0,"end":1,"input":["write",1]}\n{"begin":2,"end":3,"input":["read"],"output":1}\n')
    bad.write_text('{"begin":0,"end":1,"input":["write",1]}\n{"begin":2,"end":3,"input":["read"],"output":2}\n')
    assert run(["simulate", "--check-histories", str(good)]) == 0
    assert "linearizable" in capsys.readouterr().out
    assert run(["simulate", "--check-histories", str(bad), "--json"]) == 1
    assert '"linearizable":false' in capsys.readouterr().out.replace(" ", "")

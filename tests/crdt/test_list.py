"""The list CRDT: it is the text CRDT with values for characters, and gives back what is deleted."""

from __future__ import annotations

import pickle
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nova.crdt import RGA, Crdt, RGAList
from nova.errors import CorruptionError, UsageError
from tests.crdt.test_sequence import NAMES, histories

quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@quick
@given(histories)
def test_a_list_of_characters_is_the_text(steps):
    texts, lists = [RGA(actor=name) for name in NAMES], [RGAList(actor=name) for name in NAMES]
    for what, i, j, extra in steps:
        text, listed = texts[i], lists[i]
        if what == "insert":
            pos = j % (len(text) + 1)
            text.insert(pos, extra)
            listed.insert(pos, list(extra))
        elif what == "delete":
            if len(text):
                pos = j % len(text)
                n = min(extra, len(text) - pos)
                text.delete(pos, n)
                listed.delete(pos, n)
        elif what == "merge":
            text.merge(texts[j])
            listed.merge(lists[j])
        else:
            text.apply_delta(texts[j].delta_since(text.context))
            data = lists[j].delta_since(listed.context)
            listed.apply_delta(data).apply_delta(data)
        assert "".join(listed.value) == text.text
        assert listed.context == text.context
        assert listed._check() == 0
    found = set()
    for order in permutations(lists):
        out = RGAList()
        for replica in order:
            out.merge(replica)
        back = RGAList.from_bytes(out.to_bytes())
        assert back.value == out.value
        assert back.digest() == out.digest()
        found.add((str(out.value), out.to_bytes(), out.digest()))
    assert len(found) == 1


def spelled(value: Any) -> bytes:
    """True is not 1, and -0.0 is not 0.0; keys have no order."""
    return msgspec.msgpack.encode(value, order="deterministic")


@given(st.lists(values, max_size=20))
def test_values_come_back_as_they_were(elements):
    a = RGAList(actor="a")
    a.insert(0, elements)
    for found in (a.value, RGAList.from_bytes(a.to_bytes()).value, RGAList().apply_delta(a.delta_since()).value):
        assert spelled(found) == spelled(elements)
    assert [spelled(a[i]) for i in range(len(a))] == [spelled(x) for x in elements]


def test_what_is_taken_out_of_a_list_is_a_copy():
    a = RGAList(actor="a")
    inner = [1]
    a.append(inner)
    inner.append(2)
    a.value[0].append(3)
    a[0].append(4)
    assert a.value == [[1]]


def test_two_who_replace_an_element_at_once_leave_both():
    a = RGAList(actor="a")
    a.insert(0, ["x", "y", "z"])
    b = a.fork("b")
    a.splice(1, 1, ["from a"])
    b.splice(1, 1, ["from b"])
    assert a.merge(b).value == b.merge(a).value
    assert sorted(a.value[1:3]) == ["from a", "from b"]


def test_values_that_are_deleted_are_given_back():
    a = RGAList(actor="a")
    a.insert(0, [0])
    for i in range(5000):
        a.splice(0, 1, ["x" * 1000 + str(i)])
    b = RGAList().merge(a)
    assert len(pickle.dumps(a)) < 60_000  # only that something was there
    assert a.value == b.value == ["x" * 1000 + "4999"]
    assert a._check() == b._check() == 0
    for i in range(300):  # numbers of elements that are given back are used again, as bytes and as words
        a.insert(0, list(range(i, i + 3)))
        a.delete(1, 2)
    assert a.value == [*range(299, -1, -1), "x" * 1000 + "4999"]
    assert a._check() == 0
    assert RGAList.from_bytes(a.to_bytes()).digest() == a.digest()


def test_what_does_not_fit_is_refused_whole():
    a = RGAList(actor="a")
    a.insert(0, [1, 2, 3])
    before = a.to_bytes()
    for call, message in [
        (lambda: a.insert(4, [1]), "not within the list of 3 elements"),
        (lambda: a.delete(2, 2), "not within the list"),
        (lambda: a.insert(0, "text"), "pass a list"),
        (lambda: a.insert(0, [1, object()]), "cannot be kept"),
        (lambda: a.apply_patches([(0, 1, [9]), (9, 0, [])]), "patch 1: position 9"),
        (lambda: a.apply_patches([(0, 1)]), "has 2 parts"),
        (lambda: a.fork(None).append(1), "no actor"),
        (lambda: a.merge(RGA(actor="z")), "RGA cannot be merged into a RGAList"),
    ]:
        with pytest.raises(UsageError, match=message):
            call()
    with pytest.raises(IndexError, match="index 3"):
        a[3]
    with pytest.raises(CorruptionError, match="must start with"):
        RGAList.from_bytes(RGA(actor="a").to_bytes())
    assert a.to_bytes() == before


def test_patches_in_one_call_are_splices():
    a, b = RGAList(actor="a"), RGAList(actor="a")
    patches = [(0, 0, [1, 2, 3]), (1, 1, ["x", "y"]), (4, 0, [None])]
    a.apply_patches(patches)
    for patch in patches:
        b.splice(*patch)
    assert a.value == list(b) == [1, "x", "y", 3, None]
    assert a == b
    assert a[1:3] == ["x", "y"]
    assert a[-1] is None


def test_it_fills_the_seam():
    assert isinstance(RGAList(), Crdt)
    assert RGAList() != RGA()

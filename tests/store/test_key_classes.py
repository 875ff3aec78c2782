"""Which class a key has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.errors import ConfigError, UsageError
from nova.store.classes import KeyClass, KeyClasses

EVENTUAL, STRONG = KeyClass.EVENTUAL, KeyClass.STRONG


def test_the_longest_prefix_decides_and_without_one_a_key_is_eventual():
    classes = KeyClasses({"cfg/": "strong", "cfg/seen/": "eventual", "cfg/seen/lock": "strong"})
    assert classes.of("cfg/a") is STRONG
    assert classes.of("cfg/seen/a") is EVENTUAL
    assert classes.of("cfg/seen/lock/1") is STRONG
    assert classes.of("cfg") is EVENTUAL
    assert classes.of("vm/1") is EVENTUAL
    assert not KeyClasses()
    assert KeyClasses().of("cfg/a") is EVENTUAL
    assert KeyClasses({"": "strong"}).of("x") is STRONG


texts = st.text("ab", max_size=3)


@given(st.dictionaries(texts, st.sampled_from(["strong", "eventual"])), texts)
def test_a_prefix_knows_all_classes_below_it(plain, prefix):
    classes = KeyClasses(plain)
    tails = [""] + [a + b + c for a in "abx" for b in ("", "a", "b", "x") for c in ("", "a", "b", "x")]
    found = {classes.of(prefix + tail) for tail in tails}
    assert found == classes.below(prefix) or found < classes.below(prefix)
    assert {classes.of(prefix)} <= found


def test_a_class_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match='"x/" the class "stong"; use one of eventual, strong, hybrid'):
        KeyClasses({"x/": "stong"})


def test_a_hybrid_key_names_the_region_that_owns_it_behind_its_prefix():
    classes = KeyClasses({"vm/": "hybrid", "vm/eu/log/": "eventual", "net/eu/": "strong"})
    assert classes.of("vm/eu/7") is KeyClass.HYBRID
    assert [classes.owner(key) for key in ("vm/eu/7", "vm/us/a/b")] == ["eu", "us"]
    for key in ("vm/", "vm/eu", "vm/eu/", "vm//7"):
        with pytest.raises(UsageError, match="vm/REGION/NAME"):
            classes.owner(key)
    pinned = {prefix: classes.pinned(prefix) for prefix in ("", "vm/", "vm/e", "vm/eu/", "vm/eu/7", "net/eu/", "v/eu/")}
    assert pinned == dict.fromkeys(pinned) | {"vm/eu/": "eu", "vm/eu/7": "eu"}
    assert KeyClasses({"": "hybrid"}).owner("eu/7") == "eu"


def test_a_hybrid_prefix_ends_with_a_part_and_none_lies_in_another():
    with pytest.raises(ConfigError, match='end it with a slash: "vm/"'):
        KeyClasses({"vm": "hybrid"})
    with pytest.raises(ConfigError, match='"vm/eu/x/" the class "hybrid", and it lies below "vm/"'):
        KeyClasses({"vm/": "hybrid", "vm/eu/": "strong", "vm/eu/x/": "hybrid"})

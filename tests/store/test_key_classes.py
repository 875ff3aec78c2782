"""Which class a key has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.errors import ConfigError
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
    with pytest.raises(ConfigError, match="whose protocol this build does not have"):
        KeyClasses({"x/": "hybrid"})

"""Three texts: against the definition, against git where it is installed, and at their limits."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova.conflict.merge import merge_text
from nova.conflict.merge.sequences import hunks
from nova.errors import LimitError, UsageError
from tests.models import diff as diff_model

numbers = st.lists(st.integers(0, 4), max_size=20)
texts = st.lists(st.sampled_from("abc"), max_size=12).map(lambda found: "".join(line + "\n" for line in found))


@given(numbers, numbers)
def test_hunks_turn_one_sequence_into_the_other(a, b):
    made, at = [], 0
    for hunk in hunks(a, b):
        assert hunk.a_start > at or not made or hunk.a_start == at == 0
        made += a[at : hunk.a_start] + b[hunk.b_start : hunk.b_start + hunk.b_count]
        at = hunk.a_start + hunk.a_count
    assert made + a[at:] == b


@given(numbers, numbers)
@settings(max_examples=500)
def test_compiled_hunks_are_those_of_the_model(a, b):
    assert hunks(a, b) == diff_model.hunks(a, b)


@pytest.mark.parametrize("seed", range(20))
def test_frequent_elements_among_lone_ones_pair_as_in_the_model(seed):
    chance = random.Random(seed)
    a = [i if chance.random() < 0.7 else chance.randrange(3) for i in range(1000, 1200)]
    b = [-i if chance.random() < 0.7 else chance.randrange(3) for i in range(1000, 1200)]
    assert hunks(a, b) == diff_model.hunks(a, b)


@pytest.mark.parametrize("seed", range(20))
def test_compiled_hunks_are_those_of_the_model_for_long_sequences(seed):
    chance = random.Random(seed)
    kinds = chance.choice([2, 10, 100, 10_000])
    a = chance.choices(range(kinds), k=chance.choice([50, 400, 1500]))
    if seed % 3:
        b = list(a)
        for _ in range(chance.randrange(200)):
            i = chance.randrange(len(b))
            b[i : i + chance.randrange(3)] = chance.choices(range(kinds), k=chance.randrange(3))
    else:
        b = chance.choices(range(kinds), k=len(a))  # past the limit of cost
    assert hunks(a, b) == diff_model.hunks(a, b)


@given(texts, texts)
def test_a_side_that_changed_nothing_yields(base, other):
    for found in (merge_text(base, other, base), merge_text(base, base, other), merge_text(base, other, other)):
        assert found.clean
        assert found.text == other


@given(texts, texts, texts)
def test_swapped_sides_give_the_same_text(base, local, remote):
    one, two = merge_text(base, local, remote), merge_text(base, remote, local)
    assert one.text == two.text
    assert len(one.conflicts) == len(two.conflicts)


def test_characters_merge_within_a_line():
    found = merge_text("the quick fox", "the quick brown fox", "the slick fox", unit="character")
    assert found.clean
    assert found.text == "the slick brown fox"


def test_a_last_line_without_an_end_is_ended_in_a_union():
    assert merge_text("", "a", "b", favor="union").text == "a\nb"


def test_a_union_of_characters_adds_none():
    assert merge_text("az", "amz", "anz", unit="character", favor="union").text == "amnz"


def git_merge(folder, texts, *options):
    paths = []
    for name, text in zip(("local", "base", "remote"), texts, strict=True):
        path = folder / name
        path.write_text(text)
        paths.append(str(path))
    labels = ["-L", "local", "-L", "base", "-L", "remote"]
    return subprocess.run(["git", "merge-file", "-p", *labels, *options, *paths], capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed; it is the oracle here")
@pytest.mark.parametrize("seed", range(25))
def test_git_merges_the_same_text(seed, tmp_path):
    chance = random.Random(seed)
    alphabet = [f"line {i}\n" for i in range(chance.choice([3, 6, 20, 200]))]

    def edited(found):
        found = list(found)
        for _ in range(chance.randrange(12)):
            i = chance.randrange(len(found) + 1)
            found[i : i + chance.randrange(2)] = chance.choices(alphabet, k=chance.randrange(2))
        return found

    base = chance.choices(alphabet, k=chance.choice([0, 3, 12, 40, 150]))
    local, remote = edited(base), edited(base)
    base, local, remote = "".join(base), "".join(local), "".join(remote)
    plain = git_merge(tmp_path, (local, base, remote))
    found = merge_text(base, local, remote, favor="union")
    assert (len(found.conflicts), found.marked) == (plain.returncode, plain.stdout)
    for favor, option in (("local", "--ours"), ("remote", "--theirs"), ("union", "--union")):
        wanted = git_merge(tmp_path, (local, base, remote), option).stdout
        assert merge_text(base, local, remote, favor=favor).text == wanted


def test_texts_without_a_common_line_are_merged_in_time():
    chance = random.Random(1)
    base = [f"{i}\n" for i in range(4000)]
    local, remote = chance.sample(base, len(base)), chance.sample(base, len(base))
    assert not merge_text("".join(base), "".join(local), "".join(remote)).clean


def test_sequences_too_long_are_refused():
    with pytest.raises(LimitError, match="take them in parts"):
        hunks([1] * ((1 << 20) + 1), [])


def test_unknown_words_and_texts_too_long_are_refused():
    with pytest.raises(UsageError, match="unit is 'word'"):
        merge_text("", "", "", unit="word")
    with pytest.raises(UsageError, match="favor is 'mine'"):
        merge_text("", "", "", favor="mine")
    with pytest.raises(LimitError, match="limit is"):
        merge_text("", "x" * ((1 << 24) + 1), "")

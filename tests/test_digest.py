"""Digests of small things and of sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.digest import SetDigest, digest128
from nova.errors import UsageError

members = st.lists(st.binary(max_size=40), max_size=12)


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, "9550885906d4811a8cd01dfe64d0d686"),
        (b"", 1, "81da992a1770cf30e78a8a8c6a5a5bf5"),
        (b"a", 0, "fd810bb7f49244f77329b0e14018cf6c"),
        (b"nova" * 8, 0, "7d48753151db2773ce1caae85b6c12b9"),
    ],
)
def test_digests_are_the_same_on_every_machine(data, seed, expected):
    assert digest128(data, seed).hex() == expected
    assert digest128(bytearray(data), seed) == digest128(memoryview(data), seed) == digest128(data, seed)


@given(members, st.randoms())
def test_a_set_digest_does_not_depend_on_order(items, random):
    shuffled = list(items)
    random.shuffle(shuffled)
    assert SetDigest(items) == SetDigest(shuffled)


@given(members, members)
def test_removing_what_was_added_leaves_the_rest(stay, go):
    digest = SetDigest(stay + go)
    for item in go:
        digest.remove(item)
    assert digest == SetDigest(stay)
    assert SetDigest.from_bytes(digest.to_bytes()).hex() == digest.hex()


@given(members, members)
def test_joining_digests_is_digesting_the_join(a, b):
    joined = SetDigest(a)
    joined.update(SetDigest(b))
    assert joined == SetDigest(a + b)


def test_a_member_twice_is_not_a_member_gone():
    assert SetDigest([b"x", b"x"]) != SetDigest()


@given(st.binary(max_size=64))
def test_zeros_at_the_end_count(data):
    assert digest128(data) != digest128(data + b"\0")


def test_one_flipped_bit_flips_half_of_the_digest():
    flips = []
    for size in (1, 8, 16, 24, 33):
        base = bytes(range(size))
        whole = int.from_bytes(digest128(base), "little")
        for bit in range(8 * size):
            changed = (int.from_bytes(base, "little") ^ 1 << bit).to_bytes(size, "little")
            flips.append((whole ^ int.from_bytes(digest128(changed), "little")).bit_count())
    assert 63 < sum(flips) / len(flips) < 65
    assert min(flips) > 35


def test_short_keys_do_not_collide_in_either_half():
    seen = [digest128(i.to_bytes(4, "little")) for i in range(100_000)]
    assert len({d[:8] for d in seen}) == len({d[8:] for d in seen}) == len(seen)


def test_digests_under_different_seeds_do_not_mix():
    with pytest.raises(UsageError, match="use one seed"):
        SetDigest(seed=1).update(SetDigest(seed=2))
    with pytest.raises(UsageError, match="16"):
        SetDigest.from_bytes(b"short")

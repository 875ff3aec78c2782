"""Values as Hypothesis draws them for the tests of the merge engine: small, alike, and with every trap in them."""

from __future__ import annotations

from hypothesis import strategies as st

atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from(
        [0.0, -0.0, 1.0, 1.5, float("nan"), float("inf"), 2**53, 2**53 + 1, "", "a", "\u00e9", "e\u0301", "1"]
    ),
)
keys = st.sampled_from(["a", "b", "c", "a/b", "m~n", "", "\u00e9", "e\u0301"])
values = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
documents = st.dictionaries(keys, values, max_size=4)

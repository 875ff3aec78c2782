"""Lists over both classes of keys are one list, however its pages are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nova.store.classes import merged
from nova.store.model import Entry

keys = st.sets(st.text("abc", min_size=1, max_size=3), max_size=12)


def entry(key: str) -> Entry:
    return Entry(key, "register", key, {}, 0, "a", ("a", 1), 1)


def page(held: set[str], hidden: set[str], limit: int, after: str) -> tuple[list[Entry], str | None]:
    """As a source answers: `limit` of what it holds, of which what is of the other class is then left out."""
    rest = sorted(key for key in held if key > after)
    shown = [entry(key) for key in rest[:limit] if key not in hidden]
    return shown, rest[limit - 1] if len(rest) > limit else None


@given(keys, keys, keys, st.integers(1, 5))
def test_pages_of_both_classes_join_to_one_list_without_gaps_or_repeats(
    strong: set[str], eventual: set[str], hidden: set[str], limit: int
) -> None:
    eventual -= strong - hidden  # a key is shown by one side
    found: list[str] = []
    after = ""
    for _ in range(40):
        pages = [page(strong, hidden, limit, after), page(eventual, strong - hidden, limit, after)]
        entries, more = merged(pages, limit)
        assert len(entries) <= limit
        found += [each.key for each in entries]
        if more is None:
            break
        assert more > after
        after = more
    assert found == sorted((strong - hidden) | eventual)

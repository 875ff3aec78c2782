import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova.conflict.ot import text
from nova.errors import LimitError, UsageError
from tests.models import ottext as model

LETTERS = "ab\u00e9\U0001f600"
texts = st.text(LETTERS, max_size=8)


@st.composite
def ops_on(draw, doc):
    """An operation on `doc`, in any of the forms that the type accepts."""
    op, at = [], 0
    while at < len(doc) or draw(st.booleans()):
        kind = draw(st.sampled_from(["skip", "delete", "named", "insert"]))
        if kind == "insert" or at == len(doc):
            op.append(draw(st.text("xy\U0001f680", max_size=3)))
            continue
        size = draw(st.integers(0, len(doc) - at))
        op.append({"skip": size, "delete": {"d": size}, "named": {"d": doc[at : at + size]}}[kind])
        at += size
        if draw(st.integers(0, 9)) == 0:
            break
    return op


@st.composite
def pairs(draw):
    doc = draw(texts)
    return doc, draw(ops_on(doc)), draw(ops_on(doc))


@st.composite
def chains(draw):
    doc = draw(texts)
    ops, now = [], doc
    for _ in range(3):
        ops.append(draw(ops_on(now)))
        now = text.apply(now, ops[-1])
    return doc, *ops


def naive(doc, op):
    out, rest = "", doc
    for component in op:
        if isinstance(component, str):
            out += component
            continue
        gone = component["d"] if isinstance(component, dict) else None
        size = component if gone is None else gone if isinstance(gone, int) else len(gone)
        out += rest[:size] if gone is None else ""
        rest = rest[size:]
    return out + rest


@given(pairs())
def test_apply_agrees_with_the_definition_and_normal_form_means_the_same(pair):
    doc, op, _ = pair
    normal = text.normalize(op)
    assert text.apply(doc, op) == naive(doc, op) == text.apply(doc, normal)
    assert text.normalize(normal) == normal


@given(chains(), st.data(), st.sampled_from(["left", "right"]))
def test_native_results_are_those_of_the_model(chain, data, side):
    doc, a, b, _ = chain
    other = data.draw(ops_on(doc))
    assert text.transform(a, other, side) == model.transform(a, other, side)
    assert text.compose(a, b) == model.compose(a, b)


@given(pairs())
def test_both_orders_give_one_text(pair):
    doc, a, b = pair
    one = text.apply(text.apply(doc, b), text.transform(a, b, "left"))
    assert one == text.apply(text.apply(doc, a), text.transform(b, a, "right"))


@given(chains())
def test_compose_is_one_after_the_other_and_associative(chain):
    doc, a, b, c = chain
    assert text.apply(doc, text.compose(a, b)) == text.apply(text.apply(doc, a), b)
    left, right = text.compose(text.compose(a, b), c), text.compose(a, text.compose(b, c))
    assert text.apply(doc, left) == text.apply(doc, right)


@given(pairs())
def test_an_inverse_undoes(pair):
    doc, op, _ = pair
    full = text.make_invertible(op, doc)
    assert text.apply(text.apply(doc, full), text.invert(full)) == doc
    assert text.invert(text.invert(full)) == full


@given(pairs())
def test_the_notation_of_ot_js_means_the_same(pair):
    doc, op, _ = pair
    spans = text.to_spans(op, len(doc))
    assert text.apply(doc, text.from_spans(spans)) == text.apply(doc, op)
    assert sum(abs(c) for c in spans if isinstance(c, int)) == len(doc)


@given(pairs(), st.integers(0, 8))
def test_a_cursor_moves_as_a_mark_in_the_text_would(pair, position):
    doc, op, _ = pair
    position = min(position, len(doc))
    marked = text.apply(text.apply(doc, op), text.transform([position, "|"], op, "left"))
    assert text.transform_position(position, op) == marked.index("|")


def test_a_cursor_on_the_right_side_goes_behind_text_inserted_at_it():
    assert text.transform_position(1, [1, "xy"], "left") == 1
    assert text.transform_position(1, [1, "xy"], "right") == 3


def test_the_left_text_comes_first():
    assert text.transform(["a"], ["b"], "left") == ["a"]
    assert text.transform(["a"], ["b"], "right") == [1, "a"]


def test_deletes_of_the_same_text_happen_once():
    assert text.transform([1, {"d": 3}], [2, {"d": "cd"}], "left") == [1, {"d": 1}]


@pytest.mark.parametrize(
    ("op", "words"),
    [
        ("abc", "is a list"),
        (None, "is a list"),
        ([1.5], "component 0 is 1.5"),
        ([True], "component 0 is True"),
        ([3, -1], "component 1 is -1"),
        ([{"d": None}], "component 0"),
        ([{"i": "x"}], "component 0"),
        ([{"d": 1, "i": "x"}], "component 0"),
    ],
)
def test_what_is_no_operation_is_refused_in_words(op, words):
    for call in (lambda: text.normalize(op), lambda: text.transform([], op, "left"), lambda: text.compose(op, [])):
        with pytest.raises(UsageError, match=words):
            call()


def test_positions_beyond_the_limit_are_refused():
    with pytest.raises(LimitError, match=str(text.LENGTH_MAX)):
        text.compose([1 << 31], [])
    with pytest.raises(LimitError, match="split it"):
        text.check([1] * (text.COMPONENTS_MAX + 1))


def test_an_operation_on_another_text_is_refused():
    with pytest.raises(UsageError, match="reaches 4 code points in; the text has 3"):
        text.apply("abc", [4])
    with pytest.raises(UsageError, match="'x' is to go at 1, where 'b' is"):
        text.apply("abc", [1, {"d": "x"}])
    with pytest.raises(UsageError, match="use make_invertible first"):
        text.invert([{"d": 2}])
    with pytest.raises(UsageError, match="side is 'middle'"):
        text.transform([], [], "middle")

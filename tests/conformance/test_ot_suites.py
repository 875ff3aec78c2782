"""Transformation cases that nobody here wrote, of text, json0 and json1. NOVA_TEST_DATA names their folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nova.conflict.detect import MISSING
from nova.conflict.ot import json0, json1, text
from nova.errors import UsageError

DATA = Path(os.environ.get("NOVA_TEST_DATA", "../shared/data"))
FOLDER = DATA / "merge" if (DATA / "merge").is_dir() else DATA


def cases(name: str) -> list[dict[str, Any]]:
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here; NOVA_TEST_DATA names the folder of the public data")
    found = json.loads(path.read_text())["cases"]
    assert found
    return found


def differences(found: list[Any]) -> str:
    return f"{len(found)} cases differ:\n" + "\n".join(map(str, found[:20]))


def test_text_vectors_of_ot_js():
    wrong = []
    for case in cases("otjs_text_vectors"):
        doc = case["doc"]
        a, b, c = (text.from_spans(case[name]) for name in ("a", "b", "c_after_a"))
        after_a, after_b = text.apply(doc, a), text.apply(doc, b)
        a_prime, b_prime = text.transform(a, b, "left"), text.transform(b, a, "right")
        both, inverse = text.compose(a, c), text.invert(text.make_invertible(a, doc))
        got = {
            "a_prime": text.to_spans(a_prime, len(after_b)),
            "b_prime": text.to_spans(b_prime, len(after_a)),
            "merged": text.apply(after_b, a_prime),
            "a_compose_c": text.to_spans(both, len(doc)),
            "after_ac": text.apply(doc, both),
            "a_inverse": text.to_spans(inverse, len(after_a)),
        }
        assert text.apply(after_a, b_prime) == got["merged"]
        assert text.apply(text.apply(doc, a), inverse) == doc
        wrong += [(case["id"], key, case[key], got[key]) for key in got if got[key] != case[key]]
    assert not wrong, differences(wrong)


def test_text_vectors_of_text_unicode():
    wrong = []
    for case in cases("text_unicode_vectors"):
        doc, a, b = case["doc"], case["a"], case["b"]
        b_right = text.transform(b, a, "right")
        got = {
            "a_left": text.transform(a, b, "left"),
            "a_right": text.transform(a, b, "right"),
            "b_right": b_right,
            "after_a": text.apply(doc, a),
            "merged_left": text.apply(text.apply(doc, a), b_right),
        }
        assert text.apply(text.apply(doc, b), got["a_left"]) == got["merged_left"]
        wrong += [(case["id"], key, case[key], got[key]) for key in got if got[key] != case[key]]
    assert not wrong, differences(wrong)


def test_published_transforms_of_text_unicode():
    def plain(op: list[Any]) -> list[Any]:
        """These cases write an insert as {"i": text}."""
        return text.normalize([c["i"] if isinstance(c, dict) and "i" in c else c for c in op])

    wrong = []
    for case in cases("text_unicode_published_transforms"):
        got = text.transform(plain(case["a"]), plain(case["b"]), case["side"])
        if got != plain(case["expect"]):
            wrong.append((case, got))
    assert not wrong, differences(wrong)


def canonical(value: Any) -> str:
    """JSON in which true is not 1."""
    return json.dumps(value, sort_keys=True)


class Mock:
    """The type of one published json0 case: its operations are no lists."""

    name = "mock"

    def transform(self, op: Any, other: Any, side: str) -> Any:
        return {"mock": True}


def test_json0_published_calls(monkeypatch):
    monkeypatch.setitem(json0.SUBTYPES, "mock", Mock())
    wrong = []
    for case in cases("json0_published_calls"):
        try:
            got = canonical(getattr(json0, case["fn"])(*case["args"]))
        except UsageError as error:
            got = str(error) if "error" not in case else "refused"
        expected = "refused" if "error" in case else canonical(case["result"])
        if got != expected:
            wrong.append((case["id"], case["fn"], case["args"], expected, got))
    assert not wrong, differences(wrong)


def test_json0_vectors():
    wrong = []
    for case in cases("json0_vectors"):
        doc, a, b = case["doc"], case["a"], case["b"]
        a_left, b_right = json0.transform(a, b, "left"), json0.transform(b, a, "right")
        after_a, after_b = json0.apply(doc, a), json0.apply(doc, b)
        got = {"a_left": a_left, "b_right": b_right, "after_a": after_a, "after_b": after_b}
        got["merged_left"] = json0.apply(after_b, a_left)
        assert canonical(json0.apply(after_a, b_right)) == canonical(got["merged_left"])
        wrong += [(case["id"], key, case[key], got[key]) for key in got if canonical(got[key]) != canonical(case[key])]
    assert not wrong, differences(wrong)


def document(value: Any) -> Any:
    """These cases write no document as null."""
    return MISSING if value is None else value


def test_json1_vectors():
    names = {None: None, "RM_UNEXPECTED_CONTENT": 1, "DROP_COLLISION": 2, "BLACKHOLE": 3}
    wrong = []
    for case in cases("json1_vectors"):
        doc, a, b = document(case["doc"]), case["a"], case["b"]
        a_left, b_right = json1.transform_no_conflict(a, b, "left"), json1.transform_no_conflict(b, a, "right")
        after_a, after_b = json1.apply(doc, a), json1.apply(doc, b)
        merged = json1.apply(after_b, a_left)
        assert canonical(None if merged is MISSING else merged) == canonical(case["merged_left"])
        outcome = json1.try_transform(a, b, "left")
        got = {"a_left": a_left, "b_right": b_right, "after_a": after_a, "after_b": after_b}
        got["merged_left"] = json1.apply(after_a, b_right)
        got = {key: None if value is MISSING else value for key, value in got.items()}
        if (None if outcome["ok"] else outcome["conflict"]["type"]) != names[case["conflict_type"]]:
            wrong.append((case["id"], case["conflict_type"], outcome))
        wrong += [(case["id"], key, case[key], got[key]) for key in got if canonical(got[key]) != canonical(case[key])]
    assert not wrong, differences(wrong)


class Simple:
    """The edit type that the published json1 cases define: text put into {"str": text} at a position."""

    name = "simple"

    def apply(self, value: Any, op: Any) -> Any:
        at = op["position"]
        return {"str": value["str"][:at] + op["text"] + value["str"][at:]}

    def transform(self, op: Any, other: Any, side: str) -> Any:
        ahead = len(other["text"]) if other["position"] < op["position"] else 0
        return {"position": op["position"] + ahead, "text": op["text"]}


JSON1_NAMES = {
    "checkValidOp": "check",
    "tryTransform": "try_transform",
    "transformNoConflict": "transform_no_conflict",
    "transformPosition": "transform_position",
    "makeInvertible": "make_invertible",
}
UNDEFINED = {"__undef": 1}


def test_json1_published_calls(monkeypatch):
    monkeypatch.setitem(json1.SUBTYPES, "simple", Simple())
    wrong = []
    for case in cases("json1_published_calls"):
        function = getattr(json1, JSON1_NAMES.get(case["fn"], case["fn"]))
        try:
            result = function(*(MISSING if value == UNDEFINED else value for value in case["args"]))
            nothing = result is MISSING or function is json1.check
            got = canonical(UNDEFINED if nothing else result)
        except UsageError as error:
            got = str(error) if "error" not in case else "refused"
        expected = "refused" if "error" in case else canonical(case["result"])
        if got != expected:
            wrong.append((case["id"], case["fn"], case["args"], expected, got))
    assert not wrong, differences(wrong)

"""Public suites and the project's own scenarios, for the merge engine. NOVA_TEST_DATA names their folder.

A file may be replaced by another of the same format: nothing here knows a case by its name.
"""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nova.conflict.merge import apply_json_patch, apply_merge_patch, diff, merge_text, same, to_json_patch
from nova.errors import UsageError

DATA = Path(os.environ.get("NOVA_TEST_DATA", "../shared/data")) / "merge"


def suite(name: str) -> list[Any]:
    """The cases of a file as parameters; one that skips, with the reason, where the file is not."""
    path = DATA / f"{name}.json"
    if not path.exists():
        reason = f"{path} is not here; NOVA_TEST_DATA names the folder of the public data"
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]
    cases = json.loads(path.read_text())["cases"]
    names = [str(case.get("id") or case.get("comment") or case.get("name") or "case") for case in cases]
    return [
        pytest.param(case, id=f"{name}-{i}-{named}") for i, (case, named) in enumerate(zip(cases, names, strict=True))
    ]


# ------------------------------------------------------------------------------------------------ patches


@pytest.mark.parametrize("case", suite("json_patch_rfc6902_spec") + suite("json_patch_rfc6902_tests"))
def test_json_patch_does_what_rfc_6902_says(case: dict[str, Any]) -> None:
    if case.get("disabled"):
        pytest.skip("the suite has this record disabled: JSON parsers do not agree about it")
    before = copy.deepcopy(case["doc"])
    if "error" in case:
        with pytest.raises(UsageError):
            apply_json_patch(case["doc"], case["patch"])
    else:
        found = apply_json_patch(case["doc"], case["patch"])
        assert same(found, case.get("expected", found))
        made = to_json_patch(diff(case["doc"], found))
        assert same(apply_json_patch(case["doc"], json.loads(json.dumps(made))), found)
    assert same(case["doc"], before)


@pytest.mark.parametrize("case", suite("json_merge_patch_rfc7396"))
def test_merge_patch_does_what_rfc_7396_says(case: dict[str, Any]) -> None:
    assert same(apply_merge_patch(case["original"], case["patch"]), case["result"])


# ------------------------------------------------------------------------------------------------ texts


def joined(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


@pytest.mark.parametrize("case", suite("text_merge_vectors"))
def test_texts_merge_as_git_merges_them(case: dict[str, Any]) -> None:
    texts = [joined(case[side]) for side in ("base", "local", "remote")]
    found = merge_text(*texts)
    assert found.clean == (case["git_conflicts"] == 0)
    if found.clean:
        assert found.text == joined(case["git_merged"])
    for favor, word in (("local", "git_ours"), ("remote", "git_theirs"), ("union", "git_union")):
        forced = merge_text(*texts, favor=favor)
        assert forced.text == joined(case[word])
        assert len(forced.conflicts) == case["git_conflicts"]

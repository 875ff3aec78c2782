"""One text, written in by many, as ours and as peers have it: each the same verbs over its own library.

`edit` applies (position, deleted, inserted); `since(mark)` is the bytes of what was written after `mark`. A text
without an actor is read and told, not written in. Peers in JavaScript do the same in bench/texts.mjs; automerge is one
of those because its package for Python has no text.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np

from nova.crdt import RGA

Patches = list[tuple[int, int, str]]

FOLDER = Path(__file__).resolve().parent.parent / "build" / "peers"
"""Where `make bench` puts the packages of NODE."""
NODE = {"diamond-types": "diamond-types-node", "automerge": "@automerge/automerge-wasm"}
"""Peer -> package of the npm registry; both are Rust compiled to WebAssembly."""


class NovaText:
    def __init__(self, actor: str | None, text: RGA | None = None) -> None:
        self.rga = RGA(actor) if text is None else text

    def edit(self, patches: Patches) -> None:
        splice = self.rga.splice
        for pos, n, inserted in patches:
            splice(pos, n, inserted)

    def text(self) -> str:
        return self.rga.text

    def to_bytes(self) -> bytes:
        return self.rga.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, actor: str | None = None) -> Self:
        return cls(actor, RGA.from_bytes(data, actor=actor))

    def mark(self) -> Any:
        return self.rga.context

    def since(self, mark: Any) -> bytes:
        return self.rga.delta_since(mark)

    def apply(self, data: bytes) -> None:
        self.rga.apply_delta(data)


class NovaBatch(NovaText):
    def edit(self, patches: Patches) -> None:
        self.rga.apply_patches(patches)


class NovaBuffer(NovaText):
    def edit(self, patches: Any) -> None:
        self.rga.apply_patches(*patches)

    @staticmethod
    def of(patches: Patches) -> tuple[Any, str]:
        """The same patches as rows of a buffer, and what they insert as one text."""
        rows = np.array([(pos, n, len(inserted)) for pos, n, inserted in patches], dtype=np.int64)
        return rows, "".join(inserted for _, _, inserted in patches)


class LoroText:
    def __init__(self, actor: str | None) -> None:
        self.loro: Any = importlib.import_module("loro")
        self.doc = self.loro.LoroDoc()
        self.shared = self.doc.get_text("t")

    def edit(self, patches: Patches) -> None:
        insert, delete = self.shared.insert, self.shared.delete
        for pos, n, inserted in patches:
            if n:
                delete(pos, n)
            if inserted:
                insert(pos, inserted)
        self.doc.commit()

    def text(self) -> str:
        return str(self.shared.to_string())

    def to_bytes(self) -> bytes:
        return bytes(self.doc.export(self.loro.ExportMode.Snapshot()))

    @classmethod
    def from_bytes(cls, data: bytes, actor: str | None = None) -> Self:
        out = cls(actor)
        out.doc.import_(data)
        return out

    def mark(self) -> Any:
        return self.doc.oplog_vv

    def since(self, mark: Any) -> bytes:
        return bytes(self.doc.export(self.loro.ExportMode.Updates(mark)))

    def apply(self, data: bytes) -> None:
        self.doc.import_(data)


class PycrdtText:
    """Positions are bytes of UTF-8: only for text in ASCII.

    A transaction has a hundred edits: one for all takes time with the square of them, one for each a third more.
    """

    def __init__(self, actor: str | None) -> None:
        pycrdt: Any = importlib.import_module("pycrdt")
        self.doc = pycrdt.Doc()
        self.doc["t"] = self.shared = pycrdt.Text()

    def edit(self, patches: Patches) -> None:
        shared = self.shared
        for start in range(0, len(patches), 100):
            with self.doc.transaction():
                for pos, n, inserted in patches[start : start + 100]:
                    if n:
                        del shared[pos : pos + n]
                    if inserted:
                        shared.insert(pos, inserted)

    def text(self) -> str:
        return str(self.shared)

    def to_bytes(self) -> bytes:
        return bytes(self.doc.get_update())

    @classmethod
    def from_bytes(cls, data: bytes, actor: str | None = None) -> Self:
        out = cls(actor)
        out.doc.apply_update(data)
        return out

    def mark(self) -> bytes:
        return bytes(self.doc.get_state())

    def since(self, mark: bytes) -> bytes:
        return bytes(self.doc.get_update(mark))

    def apply(self, data: bytes) -> None:
        self.doc.apply_update(data)


TEXTS: dict[str, type[Any]] = {
    "nova": NovaText,
    "nova-batch": NovaBatch,
    "nova-buffer": NovaBuffer,
    "loro": LoroText,
    "pycrdt": PycrdtText,
}


def lacks(peer: str) -> str:
    """Why this peer cannot be measured here; empty: it can."""
    if peer in NODE:
        if shutil.which("node") is None:
            return f"peer {peer} needs Node, which is not installed"
        if not (FOLDER / "node_modules" / NODE[peer]).is_dir():
            return f"peer {peer} is not installed; `make bench` installs it, where npm is"
    elif not peer.startswith("nova"):
        try:
            importlib.import_module(peer)
        except ImportError:
            return f"peer {peer} is not installed"
    return ""


def in_node(peer: str, task: str, given: dict[str, Any], *, rounds: int, scratch: Path) -> dict[str, Any]:
    """A task of bench/texts.mjs: `seconds` of CPU time of each round, and what it came to."""
    work = scratch / f"{task}.json"
    work.write_text(json.dumps(given))
    command = ["node", str(Path(__file__).with_suffix(".mjs")), str(FOLDER), peer, task, str(work), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def versions(names: Iterable[str] = ("loro", "pycrdt", "xxhash", *NODE)) -> dict[str, str]:
    """The peers that are installed, and which release of each."""
    out = {}
    for name in names:
        package = FOLDER / "node_modules" / NODE.get(name, "-") / "package.json"
        if package.exists():
            out[NODE[name].rpartition("/")[2]] = str(json.loads(package.read_text())["version"])
        elif name not in NODE:
            try:
                out[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
    return out

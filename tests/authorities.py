"""Certificates for tests: made once a process, in a folder that goes with it. No date in them is fixed."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path
from typing import Any

from nova.transport.authority import Authority
from nova.transport.tls import Tls, TlsFiles

_MADE: dict[tuple[str, str], tuple[tempfile.TemporaryDirectory[str], Authority]] = {}


def authority(label: str = "", *, cluster: str = "c", algorithm: str = "p256") -> Authority:
    """The authority of that label, made by the first call; other labels are other authorities of the same cluster."""
    if (label, cluster) not in _MADE:
        folder = tempfile.TemporaryDirectory(prefix="nova-tls-")
        _MADE[label, cluster] = folder, Authority.create(Path(folder.name), cluster, algorithm=algorithm)
    return _MADE[label, cluster][1]


def files(node: str, region: str = "r", label: str = "", *, cluster: str = "c", **options: Any) -> TlsFiles:
    """The files of a node of that authority, made by the first call: other options need another name or label."""
    made = authority(label, cluster=cluster)
    found = TlsFiles.in_folder(made.folder, node)
    if not Path(found.key).exists():
        made.issue(node, region, **options)
    return found


def tls(node: str, region: str = "r", label: str = "", *, cluster: str = "c", **options: Any) -> Tls:
    """What a transport takes, for a node whose certificate is in order."""
    return Tls(files(node, region, label, cluster=cluster, **options), cluster=cluster)


def days_ago(days: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)


def expired(node: str, region: str = "r", label: str = "", *, cluster: str = "c") -> TlsFiles:
    """Was valid until yesterday."""
    return files(node, region, label, cluster=cluster, now=days_ago(30), days=29)


def not_yet_valid(node: str, region: str = "r", label: str = "", *, cluster: str = "c") -> TlsFiles:
    """Begins tomorrow."""
    return files(node, region, label, cluster=cluster, now=days_ago(-1), days=30)

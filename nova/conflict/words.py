"""Values in words, for people."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import msgspec

from nova.conflict.detect import MISSING, canonical


def show(value: Any) -> str:
    """A value for people, on one line, at most 80 characters."""
    if value is MISSING:
        return "nothing"
    if isinstance(value, Set):
        return "{" + ", ".join(show(item) for item in sorted(value, key=canonical)) + "}"
    try:
        text = msgspec.json.encode(value, order="deterministic").decode()
    except (TypeError, ValueError, OverflowError):
        text = type(value).__name__ + " 0x" + canonical(value).hex()
    return text if len(text) <= 80 else text[:77] + "..."

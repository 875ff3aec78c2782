"""Operational transformation: concurrent operations rewritten so that both orders end in the same value.

`text` for strings, `json0` and `json1` for trees. Each is a type of functions: apply, compose, transform, normalize,
check, and what it takes to invert.
"""

from nova.conflict.ot import json0, json1, text

__all__ = ["json0", "json1", "text"]

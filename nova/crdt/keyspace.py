"""The state of a replica: every key as one observed-remove map under one vector clock, without tombstones."""

from nova._native.keyspace import (
    BatchHead,
    Entry,
    Keyspace,
    Row,
    Write,
    batch_head,
    cells_max,
    key_bytes_max,
    leaf_count,
)

__all__ = [
    "BatchHead",
    "Entry",
    "Keyspace",
    "Row",
    "Write",
    "batch_head",
    "cells_max",
    "key_bytes_max",
    "leaf_count",
]

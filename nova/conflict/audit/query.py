"""What is asked of an audit trail, by everybody who asks: the index, the log, a node, its API and its clients."""

from __future__ import annotations

import msgspec


class AuditQuery(msgspec.Struct, frozen=True):
    """Events that match everything that is given, oldest first.

    resource, conflict, type  None: any
    since_ms, until_ms        times from .. to before
    after                     only events with a greater number
    limit                     at most so many of them
    """

    resource: str | None = None
    conflict: str | None = None
    type: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    after: int = 0
    limit: int = 100

"""The audit trail: what was found, settled, decided, discarded and undone, so that nobody can change it unseen."""

from nova._native.audit import MAGIC, blake3
from nova.conflict.audit.bodies import (
    RecordedVotes,
    decision_body,
    decision_event,
    detect_body,
    escalate_body,
    escalation_event,
    events_of,
    fail_body,
    point_body,
    resolve_body,
    rollback_body,
    vote_body,
)
from nova.conflict.audit.chain import (
    GENESIS,
    TYPES,
    AuditChain,
    AuditEvent,
    ChainMark,
    Verdict,
    decode_event,
    export_lines,
    import_lines,
    verify,
)
from nova.conflict.audit.log import AuditLog, AuditStatistics, Index, IndexRow, Records, verify_kept
from nova.conflict.audit.patterns import Hitter, Pattern, PatternDetector, SpaceSaving
from nova.conflict.audit.query import AuditQuery
from nova.conflict.audit.retention import ERASED, Retention, Vault
from nova.conflict.audit.words import describe, explain, when

__all__ = [
    "ERASED",
    "GENESIS",
    "MAGIC",
    "TYPES",
    "AuditChain",
    "AuditEvent",
    "AuditLog",
    "AuditQuery",
    "AuditStatistics",
    "ChainMark",
    "Hitter",
    "Index",
    "IndexRow",
    "Pattern",
    "PatternDetector",
    "RecordedVotes",
    "Records",
    "Retention",
    "SpaceSaving",
    "Vault",
    "Verdict",
    "blake3",
    "decision_body",
    "decision_event",
    "decode_event",
    "describe",
    "detect_body",
    "escalate_body",
    "escalation_event",
    "events_of",
    "explain",
    "export_lines",
    "fail_body",
    "import_lines",
    "point_body",
    "resolve_body",
    "rollback_body",
    "verify",
    "verify_kept",
    "vote_body",
    "when",
]

"""What goes over the wire: the bodies of requests and answers."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from nova.conflict.healing.checkpoints import Checkpoint
from nova.store.decisions import Waiting
from nova.store.healing import Healing
from nova.store.model import Entry, Put
from nova.store.points import Point


class KeyWrite(msgspec.Struct, forbid_unknown_fields=True):
    """Body of PUT /v1/keys/{key}; the fields are those of Put."""

    value: Any
    kind: str | None = None
    merge: bool = False
    context: dict[str, int] | None = None
    conditional: bool = False
    expect: int | None = None


class KeyEntry(Entry, frozen=True, kw_only=True):
    """An entry, with the milliseconds of its timestamp since 1970 for readers whose integers end at 2^53.

    `version` is there for strong keys only: hand it back as `expect`.
    """

    time_ms: int
    version: int | msgspec.UnsetType = msgspec.UNSET


class KeyPage(msgspec.Struct):
    """Entries in key order; hand `next` back as `after`, null: that was all."""

    keys: list[KeyEntry]
    next: str | None


class Batch(msgspec.Struct, forbid_unknown_fields=True):
    """Up to 10,000 writes that share one durable commit."""

    puts: list[Put]


class Written(msgspec.Struct):
    key: str
    clock: dict[str, int]
    timestamp: int
    dot: tuple[str, int]


class NotWritten(msgspec.Struct):
    key: str
    code: str
    error: str


class BatchResults(msgspec.Struct):
    """One result for each write, in order. A refused write does not hold the others back."""

    results: list[dict[str, Any]]


class OwnedKeys(msgspec.Struct):
    """The keys of one region, as far as they are here: at equal `revision` all nodes have the same `digest`."""

    members: list[str]
    revision: int
    compacted: int
    keys: int
    bytes: int
    digest: str


class HybridStatus(msgspec.Struct):
    """Keys of class hybrid: the leader of this node's region, the members that are connected, and all regions."""

    region: str
    leader: str | None
    digest: str
    connected: list[str]
    regions: dict[str, OwnedKeys]
    failure: str | None


class TlsStatus(msgspec.Struct):
    """The node's certificate, when it and the first of its authorities expire (Unix seconds), whether clients of the
    API must show one, and how many handshakes failed, by cause."""

    certificate: str
    fingerprint: str
    expires_s: float
    ca_expires_s: float
    asks_clients: bool
    failures: dict[str, int]


class Status(msgspec.Struct):
    """The node in numbers; `digest` is equal on nodes that hold equal states.

    `strong_keys` is there if the node is of a group, of which /v1/consensus tells more; `keys` are the eventual ones.
    `sync` is the mode of the network, if that is configured. `tls` is there if the node's ports speak it.
    `hybrid` is there if the node keeps keys that regions own.
    """

    name: str
    region: str
    version: str
    revision: int
    digest: str
    keys: int
    peers: int
    healthy: bool
    cluster: str
    incarnation: int
    clock: dict[str, int]
    uptime_s: float
    conflicts: int
    pending: int
    writes_total: int
    rss_bytes: int
    log: dict[str, int]
    http: str
    listen: str
    strong_keys: int | msgspec.UnsetType = msgspec.UNSET
    sync: str | msgspec.UnsetType = msgspec.UNSET
    tls: TlsStatus | msgspec.UnsetType = msgspec.UNSET
    hybrid: HybridStatus | msgspec.UnsetType = msgspec.UNSET


class Peer(msgspec.Struct):
    """A node that this one knows, and the link to it: bytes since the start, what is queued now, whether by TLS."""

    node: str
    region: str
    address: str
    http: str
    state: str
    incarnation: int
    connected: bool
    rtt_ms: float | None
    lag_ops: int
    sent_bytes: int
    received_bytes: int
    queue_bytes: int
    encrypted: bool


class PeerPage(msgspec.Struct):
    peers: list[Peer]


class ConflictPage(msgspec.Struct):
    """Conflicts, newest first."""

    conflicts: list[dict[str, Any]]
    total: int
    by_type: dict[str, int]
    by_strategy: dict[str, int]
    next: str | None


class Why(msgspec.Struct):
    """How a value came to be: the writes behind it, the conflicts among them, and the same in words."""

    key: str
    kind: str
    value: Any
    writes: list[dict[str, Any]]
    conflicts: list[dict[str, Any]]
    text: str


class AuditPage(msgspec.Struct):
    events: list[dict[str, Any]]
    next: str | None


class AuditCheck(msgspec.Struct):
    """Whether the hash chain of the audit trail is whole."""

    ok: bool
    events: int
    head: str
    error: str | None = None


class Witnesses(msgspec.Struct):
    """Heads of audit trails, COUNT:HASH, that are kept where the trail's own node cannot change them.

    held_by     peer -> head of this node's trail that it was heard to hold
    accused_by  peer -> why the head that it holds does not fit this trail
    holds       peer -> heads of its trails that this node holds, the present one and those of data directories before
    """

    trail: str
    held_by: dict[str, str]
    accused_by: dict[str, str]
    holds: dict[str, list[str]]


class CheckpointPage(msgspec.Struct):
    """The checkpoints of this node, oldest first."""

    checkpoints: list[Checkpoint]


class HealWith(msgspec.Struct, forbid_unknown_fields=True):
    """A peer to exchange with now, and how long that may take."""

    peer: str
    timeout_ms: Annotated[int, msgspec.Meta(ge=100, le=600_000)] = 30_000


class HealReport(Healing, frozen=True, kw_only=True):
    """How two nodes came together; `conflicts`: how many this node has recorded meanwhile."""

    conflicts: int
    took_ms: float


class PointPage(msgspec.Struct):
    """The newest rollback points of a key that this node made, at most 100, oldest first."""

    points: list[Point]


class NewPoint(msgspec.Struct, forbid_unknown_fields=True):
    note: str = ""


class MadePoint(msgspec.Struct):
    point: str


class RollbackTo(msgspec.Struct, forbid_unknown_fields=True):
    """Where to, and the clock that the decision was made on (null: the present one): what it does not know stays."""

    to: str
    context: dict[str, int] | None = None
    by: str = ""


class WaitingPage(msgspec.Struct):
    """What waits for somebody to decide, oldest first."""

    waiting: list[Waiting]


class Decide(msgspec.Struct, forbid_unknown_fields=True):
    """A decision about what was `shown`: path -> value for each path that has candidates, "" is the whole value."""

    shown: str
    values: dict[str, Any]
    by: str = ""


class Keep(msgspec.Struct, forbid_unknown_fields=True):
    """What the audit trail shall keep; null: no such limit."""

    age_ms_max: int | None = None
    events_max: int | None = None


class Dropped(msgspec.Struct):
    dropped: int


class Check(msgspec.Struct, forbid_unknown_fields=True):
    """A condition on a strong key; give one of the fields. version 0: it holds nothing."""

    version: int | msgspec.UnsetType = msgspec.UNSET
    value: Any = msgspec.UNSET
    exists: bool | msgspec.UnsetType = msgspec.UNSET


class Step(msgspec.Struct, forbid_unknown_fields=True):
    """An operation on a strong key; give one of the fields: put a value, add to a number, delete, get."""

    put: Any = msgspec.UNSET
    add: int | float | msgspec.UnsetType = msgspec.UNSET
    delete: bool | msgspec.UnsetType = msgspec.UNSET
    get: bool | msgspec.UnsetType = msgspec.UNSET


class Transaction(msgspec.Struct, forbid_unknown_fields=True):
    """Operations on one strong key that are all carried out, in order, if all conditions hold; else none."""

    do: list[Step]
    if_: list[Check] = msgspec.field(name="if", default_factory=list)


class TransactionDone(msgspec.Struct):
    """`entry`: what the key holds now, null for nothing; `results`: what it held behind each operation."""

    entry: KeyEntry | None
    results: list[Any]
    revision: int


class EpochLink(msgspec.Struct):
    """One link of the chain of epochs: which protocol orders, among whom, from which position on."""

    number: int
    protocol: str
    members: list[str]
    start: int
    former: str | None


class GroupMember(msgspec.Struct):
    """`lag`: entries that it does not have yet, as this node knows: a leader of all, others of themselves."""

    node: str
    address: str
    role: str
    leads: bool
    connected: bool
    position: int | None
    lag: int | None


class AdaptiveStatus(msgspec.Struct):
    """By which policy the protocol is chosen, and the last decision that this node acted upon, with its inputs."""

    policy: str
    decision: str | None


class GroupStatus(msgspec.Struct):
    """The group of the strong keys, as this node sees it. Nodes with equal `revision` have equal `digest`."""

    node: str
    protocol: str
    role: str
    leader: str | None
    leader_http: str
    term: int
    epoch: int
    epochs: list[EpochLink]
    settled: bool
    members: list[GroupMember]
    committed: int
    applied: int
    revision: int
    compacted: int
    keys: int
    bytes: int
    bytes_max: int
    digest: str
    classes: dict[str, str]
    failure: str | None
    adaptive: AdaptiveStatus | None


class AddMember(msgspec.Struct, forbid_unknown_fields=True):
    """Who shall vote, or only learn; `address`: HOST:PORT of its consensus.listen, null if it is known."""

    node: str
    address: str | None = None
    learner: bool = False


class AddToRegion(msgspec.Struct, forbid_unknown_fields=True):
    """Who shall keep the keys of regions, too; `address`: HOST:PORT of its hybrid.listen, null if it is known."""

    node: str
    address: str | None = None


class TransferTo(msgspec.Struct, forbid_unknown_fields=True):
    node: str


class SwitchTo(msgspec.Struct, forbid_unknown_fields=True):
    """The protocol of the next epoch, and its members (none: as now), with addresses of those that are new."""

    protocol: str
    members: list[str] = []
    addresses: dict[str, str] = {}


class Cut(msgspec.Struct, forbid_unknown_fields=True):
    """Peers to stop talking to."""

    peers: list[str]


class CutPeers(msgspec.Struct):
    cut: list[str]


class Ready(msgspec.Struct):
    ready: bool
    reason: str


class Problem(msgspec.Struct):
    """Every error. 409 adds `current` (an Entry and `yours`, or what waits now), 410 adds `oldest`."""

    code: str
    error: str
    request_id: str


encode = msgspec.json.Encoder().encode
decode_write = msgspec.json.Decoder(KeyWrite).decode
decode_batch = msgspec.json.Decoder(Batch).decode
decode_clock = msgspec.json.Decoder(dict[str, int]).decode

Headers = list[tuple[bytes, bytes]]

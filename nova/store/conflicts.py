"""Conflicts of a replica: found as operations arrive, settled by the key's strategy, recorded in the audit chain."""

from __future__ import annotations

from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from time import perf_counter_ns
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from nova.clock import VectorClock, stamp_ms
from nova.conflict import vm
from nova.conflict.audit import AuditChain, AuditEvent, decode_event, detect_body, escalate_body, explain, resolve_body
from nova.conflict.detect import (
    MISSING,
    Conflict,
    ConflictType,
    Contention,
    ResourceIndex,
    Version,
)
from nova.conflict.metrics import ConflictMetrics, Hooks
from nova.conflict.strategies import Resolution
from nova.crdt.keyspace import Entry as Rows
from nova.crdt.keyspace import Row, Write
from nova.metrics import Registry
from nova.store.ballots import Ballots, node_of, question_of, version_of
from nova.store.decisions import APART
from nova.store.invariants import InvariantIndex
from nova.store.kinds import BY_CODE, KINDS
from nova.store.semantics import SEMANTIC
from nova.store.settling import Settling
from nova.types import Dot

if TYPE_CHECKING:
    from nova.store.core import Replica

_unpack = msgspec.msgpack.Decoder().decode

Effect = tuple[str, Write, list[str] | None, list[tuple[str, Write]] | None, bool, list[tuple[str, bytes]]]
"""What one operation did; see Keyspace.write."""

VM = KINDS["vm"].code
OWNERS_MAX = 16
INVARIANT = "invariant"
CLAIMS = "/networks/"
"""Paths of a VM whose leaves claim something exclusive."""


class Conflicts:
    """Finds the conflicts that operations make and keeps the newest of them readable.

    The id of a conflict is a function of the versions that met, so replicas name it alike. A record stays when later
    writes supersede its versions; the whole story is in the audit chain.
    """

    def __init__(self, replica: Replica, metrics: Registry) -> None:
        self._replica = replica
        self._resources = ResourceIndex()
        self.invariants = InvariantIndex(replica.config.invariants, lambda key: replica.space.get(key) is not None)
        self._records: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._of_key: dict[str, str] = {}
        self._of_subject: dict[str, str] = {}
        self._undecided: dict[str, dict[str, Any]] = {}  # of the records, those that wait, or did, for somebody
        self.ballots = Ballots(self, replica)
        self.metrics = ConflictMetrics(metrics, Hooks(replica.now_ms, self.pending, lambda: self.of_resource))
        self.settling = Settling(replica.config, self.metrics, replica.wall_ns)
        self.rules, self._detector = self.settling.rules, self.settling.detector
        self.chain = AuditChain(key=replica.config.audit_key)
        self.by_type: Tally[str] = Tally()
        self.by_strategy: Tally[str] = Tally()
        self.total = 0
        self.of_resource: Tally[str] = Tally()

    # -- finding --

    def examine(self, effects: Sequence[Effect]) -> list[bytes]:
        """Audit records for what these operations brought about; usually none."""
        started = perf_counter_ns()
        out = self._examined(effects)
        self.metrics.searched((perf_counter_ns() - started) / 1e6)
        return out

    def _examined(self, effects: Sequence[Effect]) -> list[bytes]:
        clashes: dict[str, dict[str, list[Write]]] = {}
        arrived: dict[Dot, int] = {}
        claims: list[tuple[str, list[Contention]]] = []
        for key, write, contended, deletions, alive, puts in effects:
            if contended or deletions:
                clash = clashes.setdefault(key, {})
                arrived[write.dot] = len(arrived)
                for path in contended or ():
                    clash.setdefault(path, [])
                    if not any(path == put for put, _ in puts):  # a deletion met a row that it had not seen
                        clash[path].append(write)
                for path, deletion in deletions or ():
                    for put, _ in puts:
                        if path in ("", put):
                            clash.setdefault(put, []).append(deletion)
            if write.kind == VM and (not alive or not puts or any(path.startswith(CLAIMS) for path, _ in puts)):
                found = self._claimed(key, self._replica.space.get(key))
                if found:
                    claims.append((key, found))
        out: list[bytes] = []
        for key, clash in clashes.items():
            rows = self._replica.space.get(key)
            if rows is not None:
                out += self._found(rows, clash, arrived)
        for key, contentions in claims:
            out += self._contended(key, contentions)
        if self.invariants or self.rules:
            for key in dict.fromkeys(effect[0] for effect in effects):
                out += self._checked(key)
                out += self._disagreeing(key)
        return out

    def _checked(self, key: str) -> list[bytes]:
        """Audit records for the declared truths that a change of this key broke."""
        out: list[bytes] = []
        if not self.invariants.concerns(key):
            return out
        for broken in self.invariants.update(key, self._value(key)):
            conflict = self._detector.examine(
                broken.subject, INVARIANT, {}, contentions=[Contention(broken.subject, broken.owners)]
            ).replace(
                types=(ConflictType.INVARIANT,),
                reason=f"{broken.name}: {broken.wrong}",
                broken=((broken.name, broken.wrong),),
            )
            if conflict.id not in self._records:
                out += self._record(conflict, _left_as_it_is(f"{broken.name}: {broken.wrong}"), key)
        return out

    def declares(self, key: str) -> bool:
        """Whether a truth or a rule is declared about this key."""
        return self.invariants.concerns(key) or self.rules.concerns(key)

    def _disagreements(self, key: str) -> list[Conflict]:
        rows = self._replica.space.get(key)
        if rows is None or not self.rules.concerns(key):
            return []
        return list(self.rules.disagreements(rows, self._replica.view(rows).value))

    def _disagreeing(self, key: str) -> list[bytes]:
        """Audit records for the declared rules that writers of this key broke without knowing of each other.

        Nothing if what is contended about the key waits already, for that reason.
        """
        out: list[bytes] = []
        waits = self._undecided.get(self._of_key.get(key, ""))
        if waits is not None and SEMANTIC in waits["types"] and self.status(waits) == "pending":
            return out
        for conflict in self._disagreements(key):
            if conflict.id not in self._records:
                out += self._record(conflict, _left_as_it_is(conflict.reason))
        return out

    def _value(self, key: str) -> Any:
        rows = self._replica.space.get(key)
        return None if rows is None else self._replica.view(rows).value

    def examine_keys(self, changed: Sequence[tuple[str, Any, bool]]) -> list[bytes]:
        """The same for keys whose state was joined: (key, whether rows of it contend, ...)."""
        started = perf_counter_ns()
        out: list[bytes] = []
        merges: Tally[tuple[int, bool]] = Tally()
        for key, contended, _ in changed:
            rows = self._replica.space.get(key)
            if rows is None:
                continue
            live: dict[str, list[Write]] = {path: [] for path, items in rows.live() if contended and len(items) > 1}
            found = self._found(rows, live) if live else []
            merges[rows.kind, bool(found)] += 1
            out += found
        if self.invariants or self.rules:
            for key, *_ in changed:
                out += self._checked(key)
                out += self._disagreeing(key)
        for (code, clashed), count in merges.items():
            self.metrics.merged(BY_CODE[code].name, "conflict" if clashed else "clean", count)
        self.metrics.searched((perf_counter_ns() - started) / 1e6)
        return out

    def index(self, key: str, rows: Rows | None) -> list[Contention]:
        """Note which exclusive resources (addresses) a VM claims, and what is declared; returns new contentions."""
        if self.invariants and self.invariants.concerns(key):
            self.invariants.update(key, None if rows is None else self._replica.view(rows).value)
        return self._claimed(key, rows)

    def _claimed(self, key: str, rows: Rows | None) -> list[Contention]:
        if rows is None:
            self._resources.remove(key)
            return []
        if rows.kind != VM:
            return []
        leaves = {path: _unpack(items[-1].value) for path, items in rows.live() if path.startswith(CLAIMS)}
        return self._resources.update(key, vm.resources(leaves)) if leaves else []

    def settle(self, rows: Rows, contended: Mapping[str, Sequence[Row]]) -> tuple[Conflict, Resolution]:
        """The conflict between live rows, and what the key's strategy makes of it. A pure function of the rows."""
        conflict, resolution, _ = self.settling.settled(rows, contended)
        return conflict, resolution

    # -- recording --

    def _found(
        self, rows: Rows, clash: Mapping[str, list[Write]], arrived: Mapping[Dot, int] = MappingProxyType({})
    ) -> list[bytes]:
        if not self.settling.asks(rows.key):
            waits = self._undecided.get(self._of_key.get(rows.key, ""))
            if waits is not None and self.status(waits) == "pending":
                # The newest record of a key stands for it: so it is about what waits as well.
                clash = {**{path: [] for path in self._replica.parts(rows)[1]}, **clash}
            return self._noted(rows, clash, arrived)
        # Those who vote have to be asked the same. What met here and when differs from node to node; what is contended
        # in the end, all of it together, does not.
        removed = {path: writes for path, writes in clash.items() if writes}
        together: dict[str, list[Write]] = {path: [] for path in self._replica.parts(rows)[1]}
        return self._noted(rows, removed, {}, settle=False) + self._noted(rows, together, arrived)

    def _noted(
        self, rows: Rows, clash: Mapping[str, list[Write]], arrived: Mapping[Dot, int], *, settle: bool = True
    ) -> list[bytes]:
        """Audit records for what met at some paths of a key. Without `settle` only removals are told of."""
        contended = {}
        siblings: dict[str, list[Version]] = {}
        removed: list[tuple[str, Write]] = []
        for path, deletions in clash.items():
            items = rows.at(path)
            if settle and len(items) > 1 and any(row.value != items[0].value for row in items):
                contended[path] = items
            elif not deletions or not items:
                continue
            siblings[path] = [version_of(row) for row in items] + [_deletion(write) for write in deletions]
            removed += [(path, write) for write in deletions]
        if not siblings:
            return []
        leaves = self.settling.uncontended(rows, siblings)
        conflict = self.settling.described(rows, siblings, leaves)
        if contended and self.settling.asks(rows.key):
            conflict = question_of(conflict)
        if (known := self.held(conflict.id)) is not None:
            # Found again: a crash took operations, and left the record of their conflict.
            self._of_key[known["key"]] = conflict.id
            return self.ballots.again(known, contended, arrived) if self.ballots.waits(known) else []
        took_ms = None
        ballot: dict[str, str] = {}
        if contended:
            started = perf_counter_ns()
            _, resolution, vote = self.settling.settled(rows, contended, found=True)
            took_ms = (perf_counter_ns() - started) / 1e6
            settlement = resolve_body(resolution)
            if resolution.actions:
                settlement["actions"] = [msgspec.structs.asdict(action) for action in resolution.actions]
            if vote:
                settlement |= vote
                ids = conflict.id, self._of_key.get(rows.key, "")
                ballot = self.ballots.chosen(ids, contended, vote["vote"], arrived)
        else:
            settlement = {
                "strategy": "observed_remove", "values": {}, "explanation": [], "discarded": [], "confidence": 1.0,
                "pending": False,
            }  # fmt: skip
        for path, write in removed:
            origin = node_of(write)
            if settle and path not in contended:
                settlement["values"][path] = _unpack(rows.at(path)[-1].value)
            settlement["explanation"].append(
                f"{path or 'the value'}: {origin} removed it without having seen the concurrent write; "
                "a removal takes only what it saw, so the write stays"
            )
            reason = "a removal does not undo a write that it had not seen"
            settlement["discarded"].append({"path": path, "value": None, "origin": origin, "reason": reason})
        return self._record(conflict, settlement, took_ms=took_ms, ballot=ballot)

    # -- what stands against each other, and what voters are asked: see nova.store.votes --

    def contended(self, key: str) -> dict[str, list[Row]]:
        """The rows of a key that stand against each other now, by path."""
        rows = self._replica.space.get(key)
        return self._replica.parts(rows)[1] if rows is not None else {}

    def shown(self, key: str) -> str:
        """The id of the conflict between what stands against each other now; "" if nothing does."""
        rows = self._replica.space.get(key)
        contended = self.contended(key)
        return self.settle(rows, contended)[0].id if rows is not None and contended else ""

    def unrecorded(self) -> list[str]:
        """Keys that are contended and that voters may be asked about, though no record says that they are. O(n)."""
        if not self.settling.asking:
            return []
        asked = (key for key in list(self._replica.keys()) if self.settling.asks(key) and self.contended(key))
        return [key for key in asked if not self.ballots.among(self._of_key.get(key, ""))]

    def _contended(self, key: str, contentions: list[Contention]) -> list[bytes]:
        out: list[bytes] = []
        for contention in contentions:
            count = len(contention.owners)
            if count > OWNERS_MAX:
                # A mistake made a thousand times over is one mistake: told at 32, 64, 128 ... claimants, and named by
                # some of them.
                if count & (count - 1):
                    continue
                contention = Contention(contention.resource, contention.owners[:OWNERS_MAX])
            conflict = self._detector.examine(contention.resource, "resource", {}, contentions=[contention])
            if conflict.id in self._records:
                continue
            owners = ", ".join(contention.owners) + (f" and {count - OWNERS_MAX} others" if count > OWNERS_MAX else "")
            settlement = {
                "strategy": "manual", "values": {}, "discarded": [], "confidence": 0.0, "pending": True,
                "explanation": [
                    f"{contention.resource} is claimed by {owners}; all keep it until somebody changes one of them: "
                    "which of them has to give way is not for the store to guess"
                ],
            }  # fmt: skip
            out += self._record(conflict, settlement, key)
        return out

    def _record(
        self,
        conflict: Conflict,
        settlement: dict[str, Any],
        key: str = "",
        took_ms: float | None = None,
        ballot: Mapping[str, str] | None = None,
    ) -> list[bytes]:
        now = self._replica.now_ms()
        record = {
            "id": conflict.id,
            "key": key or conflict.resource_id,
            "resource": conflict.resource_id,
            "detected_ms": now,
            **detect_body(conflict),
        }
        record["paths"] = record["paths"] or [contention.resource for contention in conflict.contentions]
        resolved = {**record, "resolution": settlement}
        self._remember(resolved)
        result = "pending" if settlement["pending"] else "ok"
        self.metrics.detected(conflict)
        self.metrics.resolved(settlement["strategy"], result, took_ms, len(settlement["discarded"]))
        self.metrics.logged("detect")
        self.metrics.logged("resolve")
        out = [
            self.chain.append("detect", now, conflict.id, record["key"], record),
            self.chain.append("resolve", now, conflict.id, record["key"], {"resolution": settlement}),
        ]
        for action in settlement.get("actions", ()):
            body = escalate_body(action["action"], f"{action['rule']}: {action['reason']}", action["to"] or None)
            out += self.note("escalate", conflict.id, record["key"], body, now)
        if ballot:
            out += self.ballots.cast(record, ballot)
        return out

    def note(self, type: str, conflict_id: str, key: str, body: Mapping[str, Any], time_ms: int) -> list[bytes]:
        """Put any event into the chain."""
        self.metrics.logged(type)
        return [self.chain.append(type, time_ms, conflict_id, key, body)]

    def _remember(self, record: dict[str, Any], *, replayed: bool = False) -> None:
        key, id = record["key"], record["id"]
        self._records[id] = record
        if record["kind"] == INVARIANT:
            self._of_subject[record["resource"]] = id
        if record["kind"] not in APART:  # those do not say that what was found about the key itself is over
            before = self._of_key.get(key, "")
            self._of_key[key] = id
            if before not in self._records and before in self._undecided:
                self._forget(self._undecided[before])
        if record["resolution"]["pending"]:
            self._undecided[id] = record
            if "vote" in record["resolution"]:
                rows = None if replayed else self._replica.space.get(key)
                self.ballots.add(record, None if rows is None else rows.revision)
        self.total += 1
        self.of_resource[record["resource"]] += 1
        for kind in record["types"]:
            self.by_type[kind] += 1
        self.by_strategy[record["resolution"]["strategy"]] += 1
        if len(self._records) > self._replica.config.conflicts_count:
            _, oldest = self._records.popitem(last=False)
            self.of_resource[oldest["resource"]] -= 1
            if not self.of_resource[oldest["resource"]]:
                del self.of_resource[oldest["resource"]]
            # What waits stays known, or nobody would decide it: at most one for each key. In a replay the rows that
            # tell whether it still does may not be there yet.
            newest = oldest["id"] in self._undecided and self._of_key.get(oldest["key"]) == oldest["id"]
            if not newest or not (replayed or self.status(oldest) == "pending"):
                self._forget(oldest)

    def _forget(self, record: Mapping[str, Any]) -> None:
        id = record["id"]
        self._undecided.pop(id, None)
        self.ballots.forget(id)
        if self._of_key.get(record["key"]) == id:
            del self._of_key[record["key"]]
        if self._of_subject.get(record["resource"]) == id:
            del self._of_subject[record["resource"]]

    def held(self, conflict_id: str) -> dict[str, Any] | None:
        """The record itself."""
        return self._records.get(conflict_id) or self._undecided.get(conflict_id)

    def replayed(self, data: bytes) -> AuditEvent:
        """Take an event of the chain back from the archive or the log, oldest first; each only once."""
        event = decode_event(data)
        if event.seq <= self.chain.seq:
            return event
        self.chain.resume(event)
        if event.type == "detect":
            self._half = event.body
        elif event.type == "resolve" and self.held(event.conflict_id) is None:
            if self._half is not None and self._half["id"] == event.conflict_id:
                self._remember({**self._half, **event.body}, replayed=True)
            self._half = None
        elif (record := self.held(event.conflict_id)) is not None:
            if event.type == "escalate" and "level" in event.body:
                record["level"] = event.body["level"]
            elif event.type in ("vote", "fail"):
                self.ballots.replayed(event.type, record, event.body)
        return event

    _half: dict[str, Any] | None = None

    # -- reading --

    def get(self, conflict_id: str) -> dict[str, Any] | None:
        """One record by id, or None if it is unknown or no longer held."""
        record = self.held(conflict_id)
        return None if record is None else {**record, "status": self.status(record)}

    def pending(self) -> int:
        """How many held conflicts wait for somebody."""
        return sum(1 for _ in self.waiting())

    def waiting(self) -> Iterator[dict[str, Any]]:
        """The records that wait for somebody, oldest first."""
        for record in list(self._undecided.values()):
            if self.status(record) == "pending":
                yield record
            elif record["id"] not in self._records:
                self._forget(record)

    def frozen(self, key: str) -> dict[str, Any] | None:
        """The record of the conflict for which a policy froze a key, until somebody decides; None if it is not."""
        record = self._undecided.get(self._of_key.get(key, ""))
        if record is None or self.status(record) != "pending":
            return None
        asked = record["resolution"].get("actions", ())
        return record if any(action["action"] == "freeze" for action in asked) else None

    def page(
        self,
        limit: int = 100,
        after: str | None = None,
        type: str | None = None,
        strategy: str | None = None,
        key: str | None = None,
    ) -> dict[str, Any]:
        """Conflicts, newest first, and the totals by type and strategy."""
        records: Iterable[dict[str, Any]] = reversed(self._records.values())
        if after:
            records = _after(records, after)
        matching = (
            record
            for record in records
            if (not type or type in record["types"])
            and (not strategy or strategy == record["resolution"]["strategy"])
            and (not key or key in (record["key"], record["resource"]))
        )
        page = [{**record, "status": self.status(record)} for record in islice(matching, limit + 1)]
        more = len(page) > limit
        return {
            "conflicts": page[:limit],
            "total": self.total,
            "by_type": dict(self.by_type),
            "by_strategy": dict(self.by_strategy),
            "next": page[limit - 1]["id"] if more else None,
        }

    def why(self, key: str, events: Sequence[AuditEvent] = ()) -> dict[str, Any]:
        """The present value of a key, the writes behind it, its conflicts, and all of it in sentences."""
        rows = self._replica.space.get(key)
        entry = self._replica.view(rows) if rows is not None else None
        writes = []
        if rows is not None:
            for path, items in sorted(rows.live(), key=lambda item: item[0]):
                for row in items:
                    write = row.write
                    writes.append(
                        {
                            "path": path,
                            "value": _unpack(row.value),
                            "origin": node_of(write),
                            "dot": list(write.dot),
                            "timestamp": write.stamp,
                            "time_ms": stamp_ms(write.stamp),
                        }
                    )
        conflicts = self.page(limit=100, key=key)["conflicts"]
        value = entry.value if entry is not None else None
        story: list[AuditEvent | dict[str, Any]] = list(events)
        told = {event.conflict_id for event in events}
        story += [record for record in reversed(conflicts) if record["id"] not in told]
        return {
            "key": key,
            "kind": entry.kind if entry is not None else None,
            "value": value,
            "writes": writes,
            "conflicts": conflicts,
            "text": explain(key, value, writes, story),
        }

    def status(self, record: Mapping[str, Any]) -> str:
        """`pending` while somebody has to decide, `resolved`, or `superseded` by later writes."""
        if record["kind"] == "resource":
            if self._resources.contention(record["resource"]) is None:
                return "superseded"
        elif record["kind"] == INVARIANT:
            newest = self._of_subject.get(record["resource"]) == record["id"]
            if not newest or not self.invariants.broken(record["resource"]):
                return "superseded"
        elif record["kind"] == SEMANTIC:
            if not any(each.id == record["id"] for each in self._disagreements(record["key"])):
                return "superseded"
        elif self._of_key.get(record["key"]) != record["id"] or self._superseded(record):
            return "superseded"
        if not record["resolution"]["pending"]:
            return "resolved"
        if record["kind"] not in APART:
            rows = self._replica.space.get(record["key"])
            contended = self._replica.parts(rows)[1] if rows is not None else {}
            if rows is None or not contended:
                return "superseded"  # what is left of it says the same: there is nothing to decide
            if record["severity"] == "critical" and not self.settle(rows, contended)[1].pending:
                return "superseded"  # one side has stopped: what is contended still is nobody's emergency
        return "pending"

    def _superseded(self, record: Mapping[str, Any]) -> bool:
        rows = self._replica.space.get(record["key"])
        if rows is None:
            return True
        stamps = {version["timestamp"] for version in record["versions"]}
        return not any(row.write.stamp in stamps for _, items in rows.live() for row in items)


def _left_as_it_is(wrong: str) -> dict[str, Any]:
    return {
        "strategy": "manual", "values": {}, "discarded": [], "confidence": 0.0, "pending": True,
        "explanation": [f"{wrong}; what was written stays until somebody changes one of them"],
    }  # fmt: skip


def _after(records: Iterable[dict[str, Any]], last: str) -> Iterable[dict[str, Any]]:
    found = False
    for record in records:
        if found:
            yield record
        found = found or record["id"] == last


def _deletion(write: Write) -> Version:
    return Version(MISSING, VectorClock(write.clock), write.stamp, node_of(write))

"""Conflicts of a replica: found as operations arrive, settled by the key's strategy, recorded in the audit chain."""

from __future__ import annotations

from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import msgspec

from nova.clock import VectorClock, stamp_ms
from nova.conflict import vm
from nova.conflict.audit import AuditChain, AuditEvent, decode_event, detect_body, escalate_body, explain, resolve_body
from nova.conflict.detect import (
    MISSING,
    Conflict,
    ConflictDetector,
    ConflictType,
    Contention,
    ResourceIndex,
    Severity,
    Version,
)
from nova.conflict.metrics import ConflictMetrics, Hooks
from nova.conflict.policy import PolicyManager, PolicyStrategy
from nova.conflict.strategies import ConsensusVote, Resolution, ResolveContext, Strategy, strategy_named
from nova.conflict.strategies.vote import Question, candidates_of
from nova.crdt.keyspace import Entry as Rows
from nova.crdt.keyspace import Row, Write
from nova.errors import ConfigError
from nova.metrics import Registry
from nova.store.decisions import APART
from nova.store.invariants import Broken, InvariantIndex
from nova.store.kinds import BY_CODE, KINDS
from nova.store.votes import ASKING, counted, noting
from nova.types import Dot, NodeId

if TYPE_CHECKING:
    from nova.store.core import Replica

_unpack = msgspec.msgpack.Decoder().decode

Effect = tuple[str, Write, list[str] | None, list[tuple[str, Write]] | None, bool, list[tuple[str, bytes]]]
"""What one operation did; see Keyspace.write."""

VM = KINDS["vm"].code
OWNERS_MAX = 16
INVARIANT, FENCING = "invariant", "fencing"
PLACED = ("/power_state", "/host")
CLAIMS = "/networks/"
"""Paths of a VM whose leaves claim something exclusive."""


class Conflicts:
    """Finds the conflicts that operations make and keeps the newest of them readable.

    The id of a conflict is a function of the versions that met, so replicas name it alike. A record stays when later
    writes supersede its versions; the whole story is in the audit chain.
    """

    def __init__(self, replica: Replica, metrics: Registry) -> None:
        self._replica = replica
        self._detector = ConflictDetector()
        self._resources = ResourceIndex()
        self.invariants = InvariantIndex(replica.config.invariants, lambda key: replica.space.get(key) is not None)
        self._records: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._of_key: dict[str, str] = {}
        self._of_subject: dict[str, str] = {}
        self._undecided: dict[str, dict[str, Any]] = {}  # of the records, those that wait, or did, for somebody
        self._voting: dict[str, dict[str, Any]] = {}  # of these, those that wait for voters
        self._ballots: dict[str, tuple[int, dict[str, str]]] = {}  # our own: (token, path -> candidate)
        self._heard: dict[str, Mapping[str, Mapping[NodeId, str]]] = {}
        self.metrics = ConflictMetrics(metrics, Hooks(replica.now_ms, self.pending, lambda: self.of_resource))
        config = replica.config
        policies = None
        if config.policies:
            policies = PolicyManager(config.policies.values(), metrics=self.metrics, watch_ns=replica.wall_ns)
        chosen: dict[str, Strategy] = {}
        if policies is not None:
            chosen |= {prefix: policies.applied(policy.name) for prefix, policy in config.policies.items()}
        chosen |= {prefix: self._named(prefix, name) for prefix, name in config.strategies.items()}
        self._strategies = sorted(chosen.items(), key=lambda item: -len(item[0]))
        self.chain = AuditChain(key=replica.config.audit_key)
        self.by_type: Tally[str] = Tally()
        self.by_strategy: Tally[str] = Tally()
        self.total = 0
        self.of_resource: Tally[str] = Tally()

    def _named(self, prefix: str, name: str) -> Strategy:
        if name in ("sum", "operational_transform"):
            instead = "kind counter" if name == "sum" else "a text of nova.crdt"
            raise ConfigError(
                f"strategy {name!r} of prefix {prefix!r} needs the common ancestor of two writes, and a store has "
                f"none; use {instead} instead"
            )
        if name != ConsensusVote.name:
            return strategy_named(name)
        config = self._replica.config
        if not config.voters:
            raise ConfigError(f"strategy {name!r} of prefix {prefix!r} asks voters, and none are named: set voters")
        return ConsensusVote(config.voters, ASKING, timeout_ms=config.vote_timeout_ms)

    # -- finding --

    def examine(self, effects: Sequence[Effect]) -> list[bytes]:
        """Audit records for what these operations brought about; usually none."""
        started = perf_counter_ns()
        out = self._examined(effects)
        self.metrics.searched((perf_counter_ns() - started) / 1e6)
        return out

    def _examined(self, effects: Sequence[Effect]) -> list[bytes]:
        clashes: dict[str, dict[str, list[Write]]] = {}
        arrived: list[Dot] = []
        claims: list[tuple[str, list[Contention]]] = []
        started: dict[str, None] = {}
        for key, write, contended, deletions, alive, puts in effects:
            if contended or deletions:
                clash = clashes.setdefault(key, {})
                arrived.append(write.dot)
                for path in contended or ():
                    clash.setdefault(path, [])
                    if not any(path == put for put, _ in puts):  # a deletion met a row that it had not seen
                        clash[path].append(write)
                for path, deletion in deletions or ():
                    for put, _ in puts:
                        if path in ("", put):
                            clash.setdefault(put, []).append(deletion)
            if write.kind == VM and any(path in PLACED for path, _ in puts):
                started[key] = None
            if write.kind == VM and (not alive or not puts or any(path.startswith(CLAIMS) for path, _ in puts)):
                found = self._claimed(key, self._replica.space.get(key))
                if found:
                    claims.append((key, found))
        out: list[bytes] = []
        for key, clash in clashes.items():
            rows = self._replica.space.get(key)
            if rows is not None:
                out += self._found(rows, clash, arrived)
        for key in started:
            out += self._placed(key)
        for key, contentions in claims:
            out += self._contended(key, contentions)
        if self.invariants:
            for key in dict.fromkeys(effect[0] for effect in effects):
                out += self._checked(key)
        return out

    def _split_brain(self, key: str) -> Conflict | None:
        """The conflict between writers who all started a VM, of whom some had not seen where others had put it.

        No path is contended: all wrote `running`, and one alone wrote the host.
        """
        rows = self._replica.space.get(key)
        if rows is None or rows.kind != VM:
            return None
        powers, hosts = rows.at("/power_state"), rows.at("/host")
        if len(powers) < 2 or len(hosts) != 1 or any(row.value != powers[0].value for row in powers):
            return None
        siblings = {"/power_state": [_version(row) for row in powers], "/host": [_version(hosts[0])]}
        conflict = self._detector.examine(key, "vm", siblings)
        return conflict if conflict.severity is Severity.CRITICAL else None

    def _placed(self, key: str) -> list[bytes]:
        conflict = self._split_brain(key)
        if conflict is None or conflict.id in self._records:
            return []
        settlement = {
            "strategy": FENCING, "values": {}, "discarded": [], "confidence": 0.0, "pending": True,
            "explanation": [f"{conflict.reason}; nothing is merged until one of them has given way"],
        }  # fmt: skip
        return self._record(conflict, settlement)

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
                out += self._record(conflict, _left_as_it_is(broken), key)
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
            if rows.kind == VM and not found:
                found = self._placed(key)
            merges[rows.kind, bool(found)] += 1
            out += found
        if self.invariants:
            for key, *_ in changed:
                out += self._checked(key)
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

    # -- settling --

    def settle(
        self, rows: Rows, contended: Mapping[str, Sequence[Row]], *, found: bool = False
    ) -> tuple[Conflict, Resolution]:
        """The conflict between live rows, and what the key's strategy makes of it. A pure function of the rows.

        found  it was just found, so a policy counts it
        """
        conflict, resolution, _ = self._settled(rows, contended, found)
        return conflict, resolution

    def _settled(
        self, rows: Rows, contended: Mapping[str, Sequence[Row]], found: bool = False
    ) -> tuple[Conflict, Resolution, list[Question]]:
        """The same, and what voters are to be asked."""
        leaves = self._uncontended(rows, contended)
        siblings = {path: [_version(row) for row in items] for path, items in contended.items()}
        conflict = self._detector.examine(rows.key, BY_CODE[rows.kind].name, siblings, leaves=leaves)
        strategy = self.strategy_for(rows.key, rows.kind)
        context = ResolveContext(leaves=leaves)
        policy = isinstance(strategy, PolicyStrategy)
        if not policy and not getattr(strategy, "asks", False):
            return conflict, strategy.resolve(conflict, context), []
        with noting() as questions:
            if found and isinstance(strategy, PolicyStrategy):
                resolution = strategy.settle(conflict, context)
            else:
                resolution = strategy.resolve(conflict, context)
        if questions:
            resolution = resolution.replace(pending=True, confidence=min(resolution.confidence, 0.3))
        return conflict, resolution, questions

    def strategy_for(self, key: str, kind: int) -> Strategy:
        """The strategy configured for the longest prefix of a key, else the one of its kind."""
        for prefix, strategy in self._strategies:
            if key.startswith(prefix):
                return strategy
        return strategy_named("semantic" if kind == VM else "lww")

    def _uncontended(self, rows: Rows, contended: Mapping[str, object]) -> dict[str, Any]:
        if rows.kind != VM:
            return {}
        return {path: _unpack(items[-1].value) for path, items in rows.live() if path not in contended}

    # -- recording --

    def _found(self, rows: Rows, clash: Mapping[str, list[Write]], arrived: Sequence[Dot] = ()) -> list[bytes]:
        contended = {}
        siblings: dict[str, list[Version]] = {}
        removed: list[tuple[str, Write]] = []
        for path, deletions in clash.items():
            items = rows.at(path)
            if len(items) > 1 and any(row.value != items[0].value for row in items):
                contended[path] = items
            elif not deletions or not items:
                continue
            siblings[path] = [_version(row) for row in items] + [_deletion(write) for write in deletions]
            removed += [(path, write) for write in deletions]
        if not siblings:
            return []
        leaves = self._uncontended(rows, siblings)
        conflict = self._detector.examine(rows.key, BY_CODE[rows.kind].name, siblings, leaves=leaves)
        if (known := self._records.get(conflict.id)) is not None:
            # Found again: a crash took operations, and left the record of their conflict.
            self._of_key[known["key"]] = conflict.id
            if "vote" in known["resolution"]:
                self._voting[conflict.id] = known
            return []
        took_ms = None
        ballot: dict[str, str] = {}
        if contended:
            started = perf_counter_ns()
            _, resolution, questions = self._settled(rows, contended, found=True)
            took_ms = (perf_counter_ns() - started) / 1e6
            settlement = resolve_body(resolution)
            if resolution.actions:
                settlement["actions"] = [msgspec.structs.asdict(action) for action in resolution.actions]
            if questions:
                settlement["vote"] = [_question(question) for question in questions]
                ballot = self._chosen(rows.key, contended, questions, arrived)
        else:
            settlement = {
                "strategy": "observed_remove", "values": {}, "explanation": [], "discarded": [], "confidence": 1.0,
                "pending": False,
            }  # fmt: skip
        for path, write in removed:
            origin = _node(write)
            if path not in contended:
                settlement["values"][path] = _unpack(rows.at(path)[-1].value)
            settlement["explanation"].append(
                f"{path or 'the value'}: {origin} removed it without having seen the concurrent write; "
                "a removal takes only what it saw, so the write stays"
            )
            reason = "a removal does not undo a write that it had not seen"
            settlement["discarded"].append({"path": path, "value": None, "origin": origin, "reason": reason})
        return self._record(conflict, settlement, took_ms=took_ms, ballot=ballot)

    # -- votes: see nova.store.votes --

    def _chosen(
        self, key: str, contended: Mapping[str, Sequence[Row]], questions: Iterable[Question], arrived: Sequence[Dot]
    ) -> dict[str, str]:
        """What this node votes for, if it is asked: for what it voted before, else for what was here first."""
        before = self._ballots.get(self._of_key.get(key, ""), (0, {}))[1]
        ballot = {}
        for question in questions:
            if self._replica.node not in question.voters or question.path in ballot:
                continue
            known = {candidate.id for candidate in question.candidates}
            choice = before.get(question.path)
            if choice not in known:
                items = contended[question.path]
                late = {dot: number for number, dot in enumerate(arrived)}
                first = min(items, key=lambda row: (late.get(row.write.dot, -1), row.write.stamp, row.write.dot))
                choice = candidates_of([_version(first)])[0].id
            ballot[question.path] = choice
        return ballot

    def votes(self) -> dict[str, dict[str, Any]]:
        """The records that wait for voters, by id."""
        for id in [id for id, record in self._voting.items() if self._status(record) != "pending"]:
            del self._voting[id]
            self._heard.pop(id, None)
        return self._voting

    def ballot(self, conflict_id: str) -> dict[str, str] | None:
        """What this node votes for, path -> candidate; None before that is on disk, or if it has no vote."""
        token, choices = self._ballots.get(conflict_id, (0, {}))
        return choices if choices and token <= self._replica.durable_token else None

    def candidates(self, key: str) -> dict[str, dict[str, Any]]:
        """What stands against each other now: path -> (id of a candidate -> value)."""
        rows = self._replica.space.get(key)
        _, contended = self._replica.parts(rows) if rows is not None else ({}, {})
        return {
            path: {candidate.id: candidate.value for candidate in candidates_of([_version(row) for row in items])}
            for path, items in contended.items()
        }

    def shown(self, key: str) -> str:
        """The id of the conflict between what stands against each other now; "" if nothing does."""
        rows = self._replica.space.get(key)
        _, contended = self._replica.parts(rows) if rows is not None else ({}, {})
        return self.settle(rows, contended)[0].id if rows is not None and contended else ""

    def heard(self, conflict_id: str, ballots: Mapping[str, Mapping[NodeId, str]]) -> None:
        """The ballots that are known so far, for whoever looks."""
        if conflict_id in self._voting:
            self._heard[conflict_id] = ballots

    def progress(self, record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Of a vote: path -> who is asked, and who is known to have voted for which value."""
        heard = self._heard.get(record["id"], {})
        own = self._ballots.get(record["id"], (0, {}))[1]
        out: dict[str, dict[str, Any]] = {}
        for question in record["resolution"].get("vote", ()):
            path, values = question["path"], dict(zip(question["candidates"], question["values"], strict=True))
            ballots = {**({self._replica.node: own[path]} if path in own else {}), **heard.get(path, {})}
            out[path] = {
                "voters": question["voters"],
                "ballots": {voter: values.get(choice) for voter, choice in sorted(ballots.items())},
            }
        return out

    def vote_ended(
        self,
        conflict_id: str,
        key: str,
        ballots: Mapping[str, Mapping[NodeId, str]],
        winners: Mapping[str, str],
    ) -> None:
        """Note in the chain how a vote ended, once; nothing, if its conflict is not on record here."""
        record = self._records.get(conflict_id)
        if record is None or record.get("vote_ended") or record["key"] != key or "vote" not in record["resolution"]:
            return
        record["vote_ended"] = True
        values = {
            question["path"]: dict(zip(question["candidates"], question["values"], strict=True))
            for question in record["resolution"]["vote"]
        }
        now = self._replica.now_ms()
        for body in counted(record["resolution"]["vote"], ballots, winners, values):
            self._replica.note("vote", conflict_id, key, body, now)

    def vote_failed(self, conflict_id: str, key: str, reason: str) -> None:
        """The outcome of a vote could not be written: somebody has to decide."""
        if (record := self._voting.pop(conflict_id, None)) is not None:
            self._replica.note("fail", conflict_id, key, {"error": reason, "strategy": "consensus_vote"},
                               self._replica.now_ms())  # fmt: skip
            del record["resolution"]["vote"]

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
            self._ballots[conflict.id] = self._replica.next_token, dict(ballot)
            out += self.note("vote", conflict.id, record["key"], {"voter": self._replica.node, "cast": ballot}, now)
        return out

    def note(self, type: str, conflict_id: str, key: str, body: Mapping[str, Any], time_ms: int) -> list[bytes]:
        """Put any event into the chain."""
        self.metrics.logged(type)
        return [self.chain.append(type, time_ms, conflict_id, key, body)]

    def _remember(self, record: dict[str, Any]) -> None:
        self._records[record["id"]] = record
        if record["kind"] == INVARIANT:
            self._of_subject[record["resource"]] = record["id"]
        if record["kind"] not in APART:  # those do not say that what was found about the key itself is over
            self._of_key[record["key"]] = record["id"]
        if record["resolution"]["pending"]:
            self._undecided[record["id"]] = record
            if "vote" in record["resolution"]:
                self._voting[record["id"]] = record
        self.total += 1
        self.of_resource[record["resource"]] += 1
        for kind in record["types"]:
            self.by_type[kind] += 1
        self.by_strategy[record["resolution"]["strategy"]] += 1
        if len(self._records) > self._replica.config.conflicts_count:
            _, oldest = self._records.popitem(last=False)
            self._undecided.pop(oldest["id"], None)
            self._voting.pop(oldest["id"], None)
            self._ballots.pop(oldest["id"], None)
            self._heard.pop(oldest["id"], None)
            self.of_resource[oldest["resource"]] -= 1
            if not self.of_resource[oldest["resource"]]:
                del self.of_resource[oldest["resource"]]
            if self._of_key.get(oldest["key"]) == oldest["id"]:
                del self._of_key[oldest["key"]]
            if self._of_subject.get(oldest["resource"]) == oldest["id"]:
                del self._of_subject[oldest["resource"]]

    def replayed(self, data: bytes) -> AuditEvent:
        """Take an event of the chain back from the archive or the log, oldest first; each only once."""
        event = decode_event(data)
        if event.seq <= self.chain.seq:
            return event
        self.chain.resume(event)
        if event.type == "detect":
            self._half = event.body
        elif event.type == "resolve" and event.conflict_id not in self._records:
            if self._half is not None and self._half["id"] == event.conflict_id:
                self._remember({**self._half, **event.body})
            self._half = None
        elif event.type == "escalate" and "level" in event.body and event.conflict_id in self._records:
            self._records[event.conflict_id]["level"] = event.body["level"]
        elif event.type == "vote" and event.conflict_id in self._records:
            if "cast" in event.body:
                self._ballots[event.conflict_id] = 0, event.body["cast"]
            else:
                self._records[event.conflict_id]["vote_ended"] = True
        elif event.type == "fail" and (record := self._voting.pop(event.conflict_id, None)) is not None:
            del record["resolution"]["vote"]
        return event

    _half: dict[str, Any] | None = None

    # -- reading --

    def get(self, conflict_id: str) -> dict[str, Any] | None:
        """One record by id, or None if it is unknown or no longer held."""
        record = self._records.get(conflict_id)
        return None if record is None else {**record, "status": self._status(record)}

    def pending(self) -> int:
        """How many held conflicts wait for somebody."""
        return sum(1 for _ in self.waiting())

    def waiting(self) -> Iterator[dict[str, Any]]:
        """The records that wait for somebody, oldest first."""
        return (record for record in self._undecided.values() if self._status(record) == "pending")

    def frozen(self, key: str) -> dict[str, Any] | None:
        """The record of the conflict for which a policy froze a key, until somebody decides; None if it is not."""
        record = self._undecided.get(self._of_key.get(key, ""))
        if record is None or self._status(record) != "pending":
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
        page = [{**record, "status": self._status(record)} for record in islice(matching, limit + 1)]
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
                            "origin": _node(write),
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

    def _status(self, record: dict[str, Any]) -> str:
        if record["kind"] == "resource":
            if self._resources.contention(record["resource"]) is None:
                return "superseded"
        elif record["kind"] == INVARIANT:
            newest = self._of_subject.get(record["resource"]) == record["id"]
            if not newest or not self.invariants.broken(record["resource"]):
                return "superseded"
        elif record["resolution"]["strategy"] == FENCING:
            conflict = self._split_brain(record["key"])
            return "superseded" if conflict is None or conflict.id != record["id"] else "pending"
        elif self._of_key.get(record["key"]) != record["id"] or self._superseded(record):
            return "superseded"
        if not record["resolution"]["pending"]:
            return "resolved"
        if record["kind"] not in APART:
            rows = self._replica.space.get(record["key"])
            if rows is None or not self._replica.parts(rows)[1]:
                return "superseded"  # what is left of it says the same: there is nothing to decide
        return "pending"

    def _superseded(self, record: dict[str, Any]) -> bool:
        rows = self._replica.space.get(record["key"])
        if rows is None:
            return True
        stamps = {version["timestamp"] for version in record["versions"]}
        return not any(row.write.stamp in stamps for _, items in rows.live() for row in items)


def _left_as_it_is(broken: Broken) -> dict[str, Any]:
    return {
        "strategy": "manual", "values": {}, "discarded": [], "confidence": 0.0, "pending": True,
        "explanation": [f"{broken.name}: {broken.wrong}; what was written stays until somebody changes one of them"],
    }  # fmt: skip


def _after(records: Iterable[dict[str, Any]], last: str) -> Iterable[dict[str, Any]]:
    found = False
    for record in records:
        if found:
            yield record
        found = found or record["id"] == last


def _node(write: Write) -> NodeId:
    actor: str = write.actor
    return actor.rpartition("~")[0] or actor


def _question(question: Question) -> dict[str, Any]:
    return {
        "path": question.path,
        "voters": list(question.voters),
        "timeout_ms": question.timeout_ms,
        "candidates": [candidate.id for candidate in question.candidates],
        "values": [candidate.value for candidate in question.candidates],
    }


def _version(row: Row) -> Version:
    return Version(_unpack(row.value), VectorClock(row.write.clock), row.write.stamp, _node(row.write))


def _deletion(write: Write) -> Version:
    return Version(MISSING, VectorClock(write.clock), write.stamp, _node(write))

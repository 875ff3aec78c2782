"""What a store makes of the rows of one key that stand against each other: described, and settled by its strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from nova.conflict.detect import Conflict, ConflictDetector, Version
from nova.conflict.metrics import ConflictMetrics
from nova.conflict.policy import PolicyManager, PolicyStrategy
from nova.conflict.semantics import semantic
from nova.conflict.strategies import Resolution, ResolveContext, Strategy, strategy_named
from nova.crdt.keyspace import Entry as Rows
from nova.crdt.keyspace import Row
from nova.store.ballots import asked, question_of, version_of
from nova.store.kinds import BY_CODE, KINDS
from nova.store.semantics import SEMANTIC, Rules
from nova.store.strategies import asks, bound, named, noting, winning

if TYPE_CHECKING:
    from nova.store.core import StoreConfig

_unpack = msgspec.msgpack.Decoder().decode

VM = KINDS["vm"].code
BESIDE = ("/power_state", "/fencing_token", "/id")
"""Leaves of a VM that say, with their writers, whether two hosts of it are two places where it runs."""


class Settling:
    """The strategies, policies and rules that a store is configured with, for whatever it holds.

    raises  ConfigError if it cannot follow one of them
    """

    def __init__(self, config: StoreConfig, metrics: ConflictMetrics, watch_ns: Callable[[], int]) -> None:
        self.detector = ConflictDetector()
        self.rules = Rules(config.semantics, self.detector, version_of)
        if self.rules:
            self.detector.add(SEMANTIC, semantic(*config.semantics))
        policies = [bound(prefix, policy, config) for prefix, policy in config.policies.items()]
        manager = PolicyManager(policies, metrics=metrics, watch_ns=watch_ns)
        chosen: dict[str, Strategy] = {
            prefix: manager.applied(policy.name) for prefix, policy in zip(config.policies, policies, strict=True)
        }
        chosen |= {prefix: named(prefix, name, config) for prefix, name in config.strategies.items()}
        self._strategies = sorted(chosen.items(), key=lambda item: -len(item[0]))
        self.asking = {prefix for prefix, strategy in chosen.items() if asks(strategy)}

    def asks(self, key: str) -> bool:
        """Whether voters may be asked about a conflict of this key."""
        return next((prefix in self.asking for prefix, _ in self._strategies if key.startswith(prefix)), False)

    def settled(
        self, rows: Rows, contended: Mapping[str, Sequence[Row]], found: bool = False
    ) -> tuple[Conflict, Resolution, dict[str, Any]]:
        """The conflict between live rows, what the key's strategy makes of it, and if voters are to be asked what a
        record says of that. A pure function of the rows.

        found            it was just found, so a policy counts it
        vote             the questions
        vote_then_waits  whether somebody has to decide if voters do not agree
        vote_waits_too   whether somebody has to even if they do: about another path, or to approve
        """
        leaves = self.uncontended(rows, contended)
        siblings = {path: [version_of(row) for row in items] for path, items in contended.items()}
        conflict = self.described(rows, siblings, leaves)
        if self.asks(rows.key):
            conflict = question_of(conflict)
        strategy = self.strategy_for(rows.key, rows.kind)
        context = ResolveContext(leaves=leaves)
        if not isinstance(strategy, PolicyStrategy) and not self.asks(rows.key):
            return conflict, strategy.resolve(conflict, context), {}
        with noting() as questions:
            if found and isinstance(strategy, PolicyStrategy):
                resolution = strategy.settle(conflict, context)
            else:
                resolution = strategy.resolve(conflict, context)
        first = {question.path: question for question in reversed(questions)}  # of a chain of votes the first is held
        if inside := sorted(first.keys() - contended.keys()):
            words = f"{', '.join(inside)}: votes are about whole values, not about parts of one; the fallback stands"
            resolution = resolution.replace(explanation=(*resolution.explanation, words))
        about = [asked(first[path]) for path in sorted(first.keys() & contended.keys())]
        if not about:
            return conflict, resolution, {}
        vote = {"vote": about, "vote_then_waits": resolution.pending, "vote_waits_too": False}
        if resolution.pending:
            with winning(first.keys() & contended.keys()):
                vote["vote_waits_too"] = strategy.resolve(conflict, context).pending
        return conflict, resolution.replace(pending=True, confidence=min(resolution.confidence, 0.3)), vote

    def described(self, rows: Rows, siblings: Mapping[str, Sequence[Version]], leaves: Mapping[str, Any]) -> Conflict:
        """Rows of a key that stand against each other, as a conflict."""
        beside = self.rules.beside(rows) if self.rules else {}
        if rows.kind == VM and ("/host" in siblings or "/region" in siblings):
            beside |= {path: [version_of(row) for row in rows.at(path)] for path in BESIDE}
        return self.detector.examine(rows.key, BY_CODE[rows.kind].name, siblings, leaves=leaves, beside=beside)

    def strategy_for(self, key: str, kind: int) -> Strategy:
        """The strategy configured for the longest prefix of a key, else the one of its kind."""
        for prefix, strategy in self._strategies:
            if key.startswith(prefix):
                return strategy
        return strategy_named("semantic" if kind == VM else "lww")

    def uncontended(self, rows: Rows, contended: Mapping[str, object]) -> dict[str, Any]:
        """The other leaves of a key, as far as rules look at them."""
        if rows.kind != VM and not (self.rules and self.rules.concerns(rows.key)):
            return {}
        return {path: _unpack(items[-1].value) for path, items in rows.live() if path not in contended}

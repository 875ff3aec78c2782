"""What a store makes of the strategies and policies that it is configured with: who is asked, and what it cannot do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from typing import TYPE_CHECKING, Final

from nova.conflict.policy import Policy, PolicyStrategy
from nova.conflict.strategies import ConsensusVote, OperationalTransform, Strategy, strategy_named
from nova.conflict.strategies.vote import Ballot, Question
from nova.errors import ConfigError, UnavailableError, UsageError

if TYPE_CHECKING:
    from nova.store.core import StoreConfig

ANCESTRAL: Final = {"sum": "kind counter", "operational_transform": "a text of nova.crdt"}
"""Strategies that need the common ancestor of two writes, and what needs none."""
SEVERAL: Final = ("multi_value",)
"""Strategies whose outcome is no single value, and so none that could be written when a vote comes to nothing."""


def named(prefix: str, name: str, config: StoreConfig) -> Strategy:
    """The strategy of that name for the keys below a prefix. Raises ConfigError if a store cannot follow it."""
    where = f"of prefix {prefix!r}"
    if name in ANCESTRAL:
        raise _ancestral(name, where)
    if name != ConsensusVote.name:
        return strategy_named(name)
    return _vote(config, where, config.vote_otherwise, (config.vote_otherwise,))


def bound(prefix: str, policy: Policy, config: StoreConfig) -> Policy:
    """A policy whose votes are asked for in the cluster. Those that name no voters ask the store's.

    raises  ConfigError if a store cannot follow it
    """
    own = dict(policy.strategies)
    where = f"in policy {policy.name!r} of prefix {prefix!r}"
    for name in _names(policy):
        strategy = policy.strategy(name)
        if isinstance(strategy, OperationalTransform) or (name in ANCESTRAL and name not in policy.strategies):
            raise _ancestral(getattr(strategy, "name", name), where)
        if isinstance(strategy, ConsensusVote):
            following = (*policy.chain(name)[1:], *([strategy.otherwise] if strategy.otherwise else ()))
            own[name] = _vote(config, where, strategy.otherwise, following, strategy)
    found = copy(policy)
    found.strategies = own
    return found


def asks(strategy: Strategy) -> bool:
    """Whether it may ask voters."""
    if isinstance(strategy, PolicyStrategy):
        policy = strategy.policy
        return any(getattr(policy.strategy(name), "asks", False) for name in _names(policy))
    return bool(getattr(strategy, "asks", False))


def _names(policy: Policy) -> list[str]:
    """Every strategy that a policy may come to."""
    first = [policy.default, *(rule.use for rule in policy.rules), *policy.fields.values()]
    return list(dict.fromkeys(name for use in first for name in policy.chain(use)))


def _ancestral(name: str, where: str) -> ConfigError:
    return ConfigError(
        f"strategy {name!r} {where} needs the common ancestor of two writes, and a store has none; "
        f"use {ANCESTRAL[name]} instead"
    )


def _vote(
    config: StoreConfig, where: str, otherwise: str | None, following: Iterable[str], made: ConsensusVote | None = None
) -> ConsensusVote:
    """A vote in the cluster: of the voters that a policy `made` it for, else of the store's."""
    voters = made.voters if made is not None and made.voters else config.voters
    if not voters:
        raise ConfigError(
            f"strategy {ConsensusVote.name!r} {where} asks voters, and none are named: set voters to the names of nodes"
        )
    if wrong := [name for name in following if name in (ConsensusVote.name, *SEVERAL, *ANCESTRAL)]:
        raise ConfigError(
            f"strategy {ConsensusVote.name!r} {where} falls to {wrong[0]!r} where voters do not agree, and that "
            "settles no value by itself; let it fall to lww, semantic, manual or another one that does"
        )
    try:
        if otherwise is not None:
            strategy_named(otherwise)
        timeout_ms = made.timeout_ms if made is not None and made.voters else config.vote_timeout_ms
        return ConsensusVote(voters, ASKING, otherwise=otherwise, timeout_ms=timeout_ms)
    except UsageError as error:
        raise ConfigError(f"strategy {ConsensusVote.name!r} {where}: {error}") from None


class Asking:
    """The `Asker` of a store: it notes what is to be asked, and leaves the conflict pending until a vote has ended."""

    def ask(self, question: Question) -> Iterable[Ballot]:
        if question.path in _won.get():
            return [Ballot(voter, question.candidates[0].id) for voter in question.voters]
        noted = _noted.get()
        if noted is not None and question not in noted:
            noted.append(question)
        raise UnavailableError(f"{', '.join(question.voters)} are asked; until they have decided")


ASKING: Final = Asking()
_noted: ContextVar[list[Question] | None] = ContextVar("nova.store.strategies", default=None)


@contextmanager
def noting() -> Iterator[list[Question]]:
    """What strategies ask while this is open."""
    questions: list[Question] = []
    token = _noted.set(questions)
    try:
        yield questions
    finally:
        _noted.reset(token)


_won: ContextVar[Collection[str]] = ContextVar("nova.store.strategies.won", default=())


@contextmanager
def winning(paths: Collection[str]) -> Iterator[None]:
    """While this is open the votes about these paths are won: what is pending then waits for others than voters."""
    token = _won.set(paths)
    try:
        yield
    finally:
        _won.reset(token)


__all__ = ["ASKING", "asks", "bound", "named", "noting", "winning"]

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import disjoint_base

from nova.types import Outputs

__test__: dict[str, str]

@disjoint_base
class LogState:
    offset: int
    offset_term: int
    durable: int
    entries: list[Any]
    _syncing: deque[tuple[int, int]]

@disjoint_base
class ProgressState:
    matched: int
    next: int
    mode: Any
    active: bool
    paused: bool
    quiet: int
    flying: deque[tuple[int, int]]
    flying_bytes: int
    snapshot_position: int
    snapshot_offset: int

@disjoint_base
class RaftState:
    node: str
    term: int
    voted_for: str | None
    committed: int
    role: str
    options: Any
    log: Any
    _leader: str | None
    _told: int
    _token: int
    _durable_token: int
    _held: deque[tuple[int, str, Any]]
    _elapsed: int
    _heard: int
    _uncommitted_bytes: int
    _transferee: str | None
    _sealed_at: int | None
    _configurations: list[tuple[int, Any]]
    _progress: dict[str, Any]

@disjoint_base
class Steady:
    def __init__(
        self,
        append: type,
        reply: type,
        entry: type,
        committed: type,
        persisted: type,
        outputs: type,
        pack: Callable[[Any], bytes],
        follower: str,
        leader: str,
        replicate: Any,
    ) -> None: ...
    def step(self, core: RaftState, sender: str, message: Any) -> Outputs | None: ...
    def propose(self, core: RaftState, entries: Sequence[tuple[Any, bytes]]) -> Outputs | None: ...
    def advance(self, core: RaftState, token: int) -> Outputs | None: ...

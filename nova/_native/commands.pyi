from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

from typing_extensions import disjoint_base

__test__: dict[str, str]

@disjoint_base
class Session:
    @property
    def floor(self) -> int: ...
    @property
    def answers(self) -> dict[int, Any]: ...
    def __init__(self, floor: int = 0, answers: dict[int, Any] | None = None) -> None: ...
    def reserve(self, sequence: int, told: Any, window: int) -> None: ...

def apply_fresh(
    sessions: OrderedDict[int, Session],
    commands: Sequence[Any],
    apply: Callable[[list[Any]], Sequence[bytes]],
    outcome: Callable[[Any, bytes], Any],
    ok: Any,
    ordered: bool,
    window: int,
) -> list[Any] | None: ...

@disjoint_base
class Pending:
    age: int
    queued: bool
    @property
    def command(self) -> Any: ...
    @property
    def retries(self) -> bool: ...
    def __init__(self, command: Any, retries: bool) -> None: ...

_Name = tuple[int, int, bytes]

def name_of(command: Any) -> _Name: ...
def submit(pending: dict[_Name, Pending], queue: deque[Any], command: Any, opening: int, limits: Any) -> bool: ...
def take(queue: deque[Any], count_max: int, bytes_max: int) -> list[Any]: ...
def proposed(pending: dict[_Name, Pending], batch: list[Any]) -> None: ...
def aged(pending: dict[_Name, Pending], retry_ticks: int) -> bool: ...
def answer(
    pending: dict[_Name, Pending],
    commands: Sequence[Any],
    outcomes: list[Any],
    position: int,
    event: Callable[[Any, Any, int], Any],
    gap: Any,
    retry_ticks: int,
) -> list[Any]: ...

@disjoint_base
class Call:
    @property
    def waiter(self) -> Any: ...
    @property
    def place(self) -> int: ...
    @property
    def began_s(self) -> float: ...
    @property
    def data(self) -> bytes: ...
    @property
    def key(self) -> bytes: ...
    @property
    def timed(self) -> bool: ...
    def __init__(
        self, waiter: Any, place: int, began_s: float, data: bytes, key: bytes, timed: bool = False
    ) -> None: ...
    def settle(self, answer: Any) -> None: ...

@disjoint_base
class CallTable:
    session: int
    backlog: deque[Call]
    _sequence: int
    _answered: int
    _flying: dict[int, Call]
    @property
    def calls_max(self) -> int: ...
    @property
    def window(self) -> int: ...
    def __init__(
        self,
        submit: Callable[[Any], None],
        command: Callable[[int, int, bytes, bytes], Any],
        later: tuple[type[BaseException], ...],
        ok: Any,
        backlog: deque[Call],
        window: int,
        calls_max: int,
    ) -> None: ...
    def __len__(self) -> int: ...
    def admit(self, count: int) -> None: ...
    def ask_one(self, data: bytes, key: bytes, waiter: Any, now_s: float, timed: bool = False) -> None: ...
    def fly(self, call: Call) -> bool: ...
    def answered(self, command: Any, outcome: Any) -> Call | None: ...
    def overdue(self, before_s: float) -> list[Any]: ...

@disjoint_base
class Answers:
    def __init__(
        self,
        calls: CallTable,
        kind: type,
        *,
        observe: Callable[[float], None],
        clock: Callable[[], float],
        pump: Callable[[], None],
        other: Callable[[Any], None],
        fatal: Callable[[BaseException], None],
    ) -> None: ...
    def __call__(self, event: Any) -> None: ...

def found(
    read: Callable[[bytes], bytes],
    queries: Sequence[bytes],
    outcome: Callable[[Any, bytes], Any],
    ok: Any,
    refused: Any,
) -> list[Any]: ...
def settle_reads(
    asked: list[Any], outcomes: Sequence[Any], ok: Any, refuse: Callable[[Any], BaseException]
) -> None: ...

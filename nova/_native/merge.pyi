from collections.abc import Callable
from typing import Any, Final

__test__: dict[str, object]

DEPTH_MAX: Final[int]
DIFFERENT: Final[int]
EQUAL: Final[int]
IDENTICAL: Final[int]

def equal(a: Any, b: Any, depth: int = 0) -> int: ...
def too_deep() -> Exception: ...
def check_key(key: Any) -> None: ...
def is_record(value: Any) -> bool: ...
def fields_of(record: Any) -> dict[str, Any]: ...
def differences(
    a: Any, b: Any, missing: Any, lists: Callable[[Any, Any, Any, list[Any]], None]
) -> list[tuple[tuple[str | int, ...], Any, Any]]: ...
def differences_below(
    a: Any,
    b: Any,
    path: tuple[str | int, ...],
    missing: Any,
    lists: Callable[[Any, Any, Any, list[Any]], None],
    found: list[Any],
) -> None: ...

class MapMerge:
    @property
    def changes(self) -> list[Any]: ...
    @property
    def conflicts(self) -> list[Any]: ...
    @property
    def lost(self) -> list[Any]: ...
    policy: Any
    def __init__(self, nothing: Any, missing: Any, policy: Any = None) -> None: ...
    def maps(
        self,
        base: dict[str, Any],
        local: dict[str, Any],
        remote: dict[str, Any],
        declared: dict[str, Any],
        path: Any,
        depth: int,
    ) -> dict[str, Any]: ...

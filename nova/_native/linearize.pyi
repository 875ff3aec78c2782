from collections.abc import Callable, Sequence

__test__: dict[str, object]

def search(
    events: Sequence[int], optional: Sequence[bool], step: Callable[[int, int], int], entries_max: int
) -> tuple[bool | None, list[int], int]: ...

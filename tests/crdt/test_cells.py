"""Small registers are cells, larger ones rows. Which of the two never shows: the twin below knows no difference."""

from __future__ import annotations

import random
from typing import Any

import pytest

from nova.crdt import LWWRegister, MVRegister
from nova.errors import CorruptionError, UsageError

KINDS = [LWWRegister, MVRegister]
CELL_BYTES_MAX = 600


class Twin:
    """A register as dots, and as dots with what they wrote."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.known: set[tuple[str, int]] = set()
        self.rows: dict[tuple[str, int], tuple[int, Any]] = {}

    def rank(self, dot: tuple[str, int]) -> tuple[int, str]:
        return self.rows[dot][0], dot[0]

    def set(self, actor: str, value: Any, stamp: int) -> bool:
        dot = actor, 1 + sum(who == actor for who, _ in self.known)
        self.known.add(dot)
        if self.kind is LWWRegister:
            self.rows[dot] = stamp, value
            self.settle()
        else:
            self.rows = {dot: (0, value)}
        return dot in self.rows

    def settle(self) -> None:
        if self.kind is LWWRegister and self.rows:
            best = max(self.rows, key=self.rank)
            self.rows = {best: self.rows[best]}

    def merge(self, other: Twin) -> None:
        mine = {dot: row for dot, row in self.rows.items() if dot in other.rows or dot not in other.known}
        self.rows = mine | {dot: row for dot, row in other.rows.items() if dot not in self.known}
        self.known |= other.known
        self.settle()


def set_value(register: Any, value: Any, stamp: int) -> bool:
    return register.set(value, stamp) if isinstance(register, LWWRegister) else register.set(value) or True


def values_of(register: Any) -> list[Any]:
    value = register.value
    return sorted(value if isinstance(value, list) else [] if value is None else [value])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seed", "actors", "length"), [(1, 3, 20), (2, 5, 60), (3, 9, 20), (4, 7, 60), (5, 6, 47)])
def test_registers_agree_with_the_twin_at_every_size(kind, seed, actors, length):
    rng = random.Random(seed)
    names = [f"actor-{i}" for i in range(actors)]
    registers = [kind(actor=name) for name in names]
    twins = [Twin(kind) for _ in names]
    for step in range(2500):
        i, j = rng.randrange(actors), rng.randrange(actors)
        what = rng.random()
        if what < 0.4:
            value, stamp = "x" * rng.randrange(length) + str(step), (step + rng.randrange(9)) * 10_000 + step
            assert set_value(registers[i], value, stamp) == twins[i].set(names[i], value, stamp)
        elif what < 0.7:
            registers[i].merge(registers[j])
            twins[i].merge(twins[j])
        elif what < 0.8:
            registers[i].apply_delta(registers[j].delta_since(registers[i].context))
            twins[i].merge(twins[j])
        elif what < 0.82:
            assert registers[i].merge(registers[i].fork(None)) == registers[i]
            assert kind.from_bytes(registers[i].to_bytes()).digest() == registers[i].digest()
        elif what < 0.83:  # it begins a new life, with what it knows
            names[i] = f"actor-{i}~{step}"
            registers[i] = registers[i].fork(names[i])
        assert values_of(registers[i]) == sorted({value for _, value in twins[i].rows.values()})
    for register in registers:
        registers[0].merge(register)
    for register in registers:
        assert register.merge(registers[0]).to_bytes() == registers[0].to_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_register_that_outgrows_its_cell_is_one_again_when_it_fits(kind):
    register = kind(actor="a")
    set_value(register, "y" * 40, 1)
    assert register.nbytes < CELL_BYTES_MAX
    other = kind(actor="b")
    set_value(other, "z" * 400, 2)
    assert register.merge(other).nbytes > CELL_BYTES_MAX
    set_value(register, "short", 3)
    assert register.merge(other.merge(register)).value == other.value
    assert other.nbytes < CELL_BYTES_MAX
    assert kind.from_bytes(register.to_bytes()).nbytes < CELL_BYTES_MAX


@pytest.mark.parametrize("kind", KINDS)
def test_more_writers_than_a_cell_has_room_for_are_kept(kind):
    reader = kind()
    for i in range(12):
        writer = kind(actor=f"w{i}")
        set_value(writer, i, i + 1)
        reader.merge(writer)
        assert reader.context.vector.to_dict() == {f"w{k}": 1 for k in range(i + 1)}
    assert values_of(reader) == ([11] if kind is LWWRegister else list(range(12)))
    assert reader.fork("w12").merge(reader) == reader


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_that_meets_its_own_actor_elsewhere_is_not_changed(kind):
    one, two = kind(actor="a"), kind(actor="a")
    set_value(two, 1, 1)
    with pytest.raises(CorruptionError, match="share an actor"):
        one.merge(two)
    assert one == kind()
    set_value(one, 2, 2)
    reader = kind().merge(one)
    more = kind(actor="b")
    set_value(more, 3, 3)
    if kind is MVRegister:
        with pytest.raises(CorruptionError, match="two different writes"):
            reader.merge(two.merge(more))
        assert reader.value == [2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_without_an_actor_is_not_written(kind):
    register = kind()
    with pytest.raises(UsageError, match="made with actor="):
        set_value(register, 1, 1)
    assert register == kind()


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_writes_while_it_is_packed_finds_the_register_whole(kind):
    """Packing may run code of others: here it turns the cell into rows before the write that it is part of."""
    register = kind(actor="a")

    class Sly(set[int]):
        def __iter__(self) -> Any:
            set_value(register, "w" * 500, 1)
            return super().__iter__()

    set_value(register, Sly({7}), 2)
    assert register.value == ([7] if kind is LWWRegister else [[7]])
    assert register.context.vector.to_dict() == {"a": 2}
    assert kind.from_bytes(register.to_bytes()) == register

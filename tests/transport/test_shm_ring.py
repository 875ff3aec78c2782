"""The rings of shared memory alone: against a model, against a stranger who writes into them, and under two threads."""

import mmap
import os
import random
import socket
import struct
import subprocess
import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nova._native.shm import DATA, ROOM, Rings, map_bytes
from nova.errors import PeerError, UsageError
from tests.models.ring import Ring

ROOT = Path(__file__).resolve().parent.parent.parent
RING = 4096
HEAD, TAIL, BELL, SIDE = 0, 128, 256, 512
NEAR_THE_END = 2**64 - 3000
"""Positions wrap soon."""


class Pair:
    """Both ends on one memory, and the memory as a stranger sees it."""

    def __init__(self, *, ring_bytes=RING, start=0):
        memory = os.memfd_create("rings")
        os.ftruncate(memory, map_bytes(ring_bytes))
        self.raw = mmap.mmap(memory, map_bytes(ring_bytes))
        for side in (0, SIDE):
            for word in (HEAD, TAIL):
                self.poke(side + word, start)
        self.bells = socket.socketpair()
        for end in self.bells:
            end.setblocking(False)
        self.one, self.two = (
            Rings(memory, ring_bytes, initiator=not side, bell=self.bells[side].fileno(), start=start)
            for side in (0, 1)
        )
        os.close(memory)

    def poke(self, offset, value):
        self.raw[offset : offset + 8] = struct.pack("=Q", value % 2**64)

    def peek(self, offset):
        return struct.unpack("=Q", self.raw[offset : offset + 8])[0]

    def rung(self, side):
        try:
            return len(self.bells[side].recv(100))
        except BlockingIOError:
            return 0

    def close(self):
        self.one.close()
        self.two.close()
        for end in self.bells:
            end.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


steps = st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 2 * RING)), max_size=60)


@settings(deadline=None)
@given(steps, st.sampled_from([0, 1, RING - 1, NEAR_THE_END]), st.integers(0, 255))
def test_the_rings_hold_what_the_model_holds(steps, start, seed):
    with Pair(start=start) as pair:
        ends, models = (pair.one, pair.two), (Ring(RING), Ring(RING))
        chance = random.Random(seed)
        for side, writes, size in steps:
            if writes:
                data = chance.randbytes(size)
                assert ends[side].write(data) == models[side].write(data)
            else:
                assert ends[side].read(size) == models[not side].read(size)
            assert ends[side].ready == bool(models[not side].held)


def test_every_split_of_a_full_ring_comes_out_whole():
    data = random.Random(1).randbytes(RING)
    with Pair(start=NEAR_THE_END) as pair:
        for cut in range(RING + 1):  # the place where the ring begins anew moves on by one each time
            assert pair.one.write(data[:cut]) == cut
            assert pair.one.write(data[cut:]) == RING - cut
            assert pair.one.write(b"x") == 0
            assert pair.two.read(cut) + pair.two.read(RING) == data
            assert pair.one.write(b"+") == 1
            assert pair.two.read() == b"+"


def test_sizes_that_no_ring_has_are_named():
    assert map_bytes(4096) == 3 * 4096
    assert map_bytes(2 << 20) == 6 << 20  # huge pages begin at their multiples
    for ring_bytes in (0, 1, 2048, 5000, 2**63):
        assert map_bytes(ring_bytes) == 0
    with pytest.raises(UsageError, match="a ring of 5000 bytes; it has a power of two"):
        Rings(0, 5000, initiator=True, bell=0)
    memory = os.memfd_create("rings")
    os.close(memory)
    with pytest.raises(OSError, match=f"cannot map {3 * RING} bytes"):
        Rings(memory, RING, initiator=True, bell=0)


# -- a stranger writes into the memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, NEAR_THE_END])
@pytest.mark.parametrize("lie", [RING + 1, 2**32, 2**63, -1, -RING])
def test_a_head_that_cannot_be_is_not_believed(start, lie):
    with Pair(start=start) as pair:
        pair.one.write(b"honest")
        assert pair.two.read() == b"honest"
        pair.poke(HEAD, start + 6 + lie)
        for _ in range(2):  # nor later, whatever it says then
            with pytest.raises(PeerError, match=r"bytes wait in a ring of 4096"):
                pair.two.read()
            pair.poke(HEAD, start + 7)
        with pytest.raises(PeerError):
            pair.two.arm(DATA)
        with pytest.raises(PeerError):
            _ = pair.two.ready
        assert pair.two.write(b"the other way is not touched") > 0


@pytest.mark.parametrize("start", [0, NEAR_THE_END])
@pytest.mark.parametrize("lie", [1, 2**32, 2**63, -1, -RING])
def test_a_tail_that_cannot_be_is_not_believed(start, lie):
    with Pair(start=start) as pair:
        assert pair.one.write(bytes(RING)) == RING
        assert len(pair.two.read(1000)) == 1000
        assert pair.one.write(bytes(10)) == 10
        pair.poke(SIDE + TAIL, start + 1000 + lie if lie < 0 else start + RING + 10 + lie)
        for _ in range(2):
            with pytest.raises(PeerError, match="of our bytes still to take, where 3106 were left"):
                pair.one.write(bytes(RING))
            pair.poke(SIDE + TAIL, start + RING)
        with pytest.raises(PeerError):
            pair.one.arm(ROOM)
        pair.two.write(b"back")
        assert pair.one.read() == b"back"


def test_a_head_that_takes_back_what_it_had_put_is_not_believed():
    with Pair() as pair:
        pair.one.write(bytes(100))
        assert pair.two.read(40) == bytes(40)
        pair.poke(HEAD, 60)
        with pytest.raises(PeerError, match="takes back what it put"):
            pair.two.read(100)


def test_our_own_positions_are_never_read_back():
    with Pair() as pair:
        pair.one.write(b"abc")
        pair.poke(HEAD, 10**6)
        pair.poke(TAIL, 10**6)
        assert pair.one.write(b"def") == 3
        assert pair.peek(HEAD) == 6
        assert pair.two.read() == b"abcdef"
        pair.two.write(b"x")
        assert pair.one.read() == b"x"
        assert pair.peek(TAIL) == 1


def test_bytes_that_are_changed_after_they_were_taken_stay_as_they_were():
    with Pair() as pair:
        pair.one.write(b"first")
        got = pair.two.read()
        pair.raw[RING : 2 * RING] = b"!" * RING
        assert got == b"first"


def test_a_bell_full_of_nonsense_costs_a_wake_up_at_most():
    with Pair() as pair:
        for value in (0xFFFFFFFF, 0x80000000, 12):
            pair.raw[BELL : BELL + 4] = struct.pack("=I", value)
            assert pair.two.write(b"x") == 1
            assert pair.one.read(1) == b"x"
        assert pair.rung(0) <= 2


# -- sleeping --------------------------------------------------------------------------------------------------------


def test_the_bell_is_rung_once_and_only_for_who_sleeps():
    with Pair() as pair:
        pair.one.write(b"nobody sleeps")
        assert pair.rung(1) == 0
        assert pair.two.arm(DATA)  # it is there already
        pair.one.write(b"nor now")
        assert pair.rung(1) == 0
        pair.two.read()
        assert not pair.two.arm(DATA)
        for _ in range(3):
            pair.one.write(b"x")
        assert pair.rung(1) == 1
        assert pair.one.bells == 1


def test_room_is_told_by_half_a_ring():
    with Pair() as pair:
        pair.one.write(bytes(RING))
        assert not pair.one.arm(ROOM)
        pair.two.read(RING // 2 - 1)
        assert pair.rung(0) == 0
        pair.two.read(1)
        assert pair.rung(0) == 1
        assert pair.one.arm(ROOM)


def test_a_socket_full_of_wake_ups_keeps_nobody():
    with Pair() as pair:
        try:
            while pair.bells[0].send(bytes(4096)):
                pass
        except BlockingIOError:
            pass
        assert not pair.two.arm(DATA)
        assert pair.one.write(b"x") == 1
        assert pair.two.read() == b"x"


def test_a_closed_end_rings_no_more_and_still_reads():
    with Pair() as pair:
        pair.one.write(b"last words")
        pair.two.close()
        assert not pair.one.arm(DATA)
        pair.two.write(b"x")
        assert pair.rung(0) == 0
        assert pair.two.read() == b"last words"


def test_a_fork_is_refused_by_its_process():
    with Pair() as pair:
        parent = os.getpid()
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                pair.one.write(b"x")
            except UsageError as error:
                os.write(into, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(into)
        assert os.read(out, 1000).decode() == (
            f"this stream belongs to process {parent}; process {child}, forked from it, has to open its own"
        )
        os.close(out)
        assert pair.one.write(b"the parent goes on") == 18


# -- compiled: two threads, two processes, and step by step ----------------------------------------------------------


def environment():
    """Without the runtime that sanitizer builds of the tests preload: these programs have their own."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Compile a program with the rings; what to run it by."""
    folder = tmp_path_factory.mktemp("shm")
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]

    def make(name, sources, *flags):
        program = folder / name
        if not program.exists():
            command = [compiler, "-std=c11", "-g", "-pthread", f"-I{ROOT / 'csrc'}", *flags, *sources, "-o", program]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
            if done.returncode and "-fsanitize=thread" in flags and "tsan" in done.stderr:
                pytest.skip(f"{compiler} has no ThreadSanitizer: {done.stderr.strip().splitlines()[-1]}")
            assert not done.returncode, done.stderr
        return program

    return make


SOURCES = [ROOT / "tests/transport/shm_ring.c", ROOT / "csrc/shm.c"]


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment())
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel lays memory out as this ThreadSanitizer does not expect; a newer compiler's does")
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_wake_up_between_the_last_look_and_the_sleep_is_not_lost(build):
    run(build("plain", SOURCES, "-O2"), "last-look")


def test_who_publishes_while_the_other_goes_to_sleep_sees_the_bell_or_is_seen(build):
    run(build("plain", SOURCES, "-O2"), "threads", "40000", "at-once")


@pytest.mark.parametrize("of", ["threads", "processes"])
def test_two_of_them_exchange_every_byte_and_lose_no_wake_up(build, of):
    run(build("plain", SOURCES, "-O2"), of, "20000000")


def test_the_order_of_memory_satisfies_the_thread_sanitizer(build):
    run(build("ordered", SOURCES, "-O1", "-fsanitize=thread"), "threads", "2000000")


@pytest.mark.parametrize("seed", range(3))
def test_a_double_fetch_is_never_made(build, seed, tmp_path):
    """A stranger changes every word between any two looks: the fuzz target's facts hold for inputs by chance too."""
    driver = tmp_path / "driver.c"
    driver.write_text(
        "#include <stdio.h>\n#include <stdint.h>\n"
        "int LLVMFuzzerTestOneInput(const uint8_t *, size_t);\n"
        "int main(int n, char **names) { static uint8_t b[4096]; for (int i = 1; i < n; i++) {"
        ' FILE *f = fopen(names[i], "rb"); LLVMFuzzerTestOneInput(b, fread(b, 1, sizeof b, f)); fclose(f); } }\n'
    )
    target = [ROOT / "tests/fuzz/targets/shm.c", driver]
    program = build("hostile", target, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    chance = random.Random(seed)
    names = []
    for number in range(300):
        names.append(tmp_path / str(number))
        names[-1].write_bytes(chance.randbytes(chance.randrange(9, 1500)))
    run(program, *names)

"""The BLAKE3 of the audit chain against the reference implementation, and its instruction sets against each other."""

from __future__ import annotations

import os
import subprocess
import sys

import blake3 as reference
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nova._native.audit import blake3, blake3_derive
from nova.conflict.audit import AuditChain, verify
from nova.errors import UsageError

EDGES = [*range(130), 191, 192, 193, 1023, 1024, 1025, 2047, 2048, 2049, 3073, 7168, 8192, 8193, 9216, 17_413, 65_536]

WORK = """
from nova._native.audit import blake3
from nova.conflict.audit import AuditChain, verify
data = bytes(n * n % 251 for n in range(40_000))
for n in range(0, 40_000, 997):
    print(blake3(data[:n]).hex())
chain = AuditChain(key=b"k")
for size in (1, 7, 8, 9, 64, 300):
    records = chain.append_many([("fail", n, "c", "r", {"x": data[: n * size % 1500]}) for n in range(size)])
    print(chain.mark, len(records), verify(records, anchor=None if size == 1 else mark, key=b"k"))
    mark = chain.mark
"""


def pattern(size: int) -> bytes:
    return bytes(n % 251 for n in range(size))


@pytest.mark.parametrize("size", EDGES)
def test_every_size_around_the_blocks_and_chunks_hashes_as_the_reference_does(size):
    data, key = pattern(size), bytes(range(32))
    assert blake3(data) == reference.blake3(data).digest()
    assert blake3(data, key) == reference.blake3(data, key=key).digest()
    assert (
        blake3_derive("nova 2026 tests", data) == reference.blake3(data, derive_key_context="nova 2026 tests").digest()
    )


@given(st.binary(max_size=5000), st.binary(min_size=32, max_size=32), st.text(max_size=80))
def test_drawn_bytes_hash_as_the_reference_does(data, key, context):
    assert blake3(data, key) == reference.blake3(data, key=key).digest()
    assert blake3_derive(context, data) == reference.blake3(data, derive_key_context=context).digest()


def test_the_published_vectors():
    """The first rows of the official test vectors (BLAKE3 paper, appendix): nothing but the specification decides."""
    assert blake3(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert blake3(b"\0").hex() == "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"
    key = b"whats the Elvish word for friend"
    assert blake3(b"", key).hex() == "92b2b75604ed3c761f9d6f62392c8a9227ad0ea3f09573e783f1498a4ed60d26"
    context = "BLAKE3 2019-12-27 16:29:52 test vectors context"
    assert blake3_derive(context, b"").hex() == "2cc39783c223154fea8dfb7c1b1660f2ac2dcbd1c1de8277b0b0dd39b7e50d7d"


def test_a_key_of_another_size_is_refused():
    for size in (0, 31, 33):
        with pytest.raises(UsageError, match="BLAKE3 takes 32"):
            blake3(b"", bytes(size))


@given(st.lists(st.binary(max_size=1400), max_size=40))
def test_contents_hashed_side_by_side_are_those_hashed_alone(bodies):
    chain = AuditChain()
    records = chain.append_many([("fail", 0, "", "", {"b": body}) for body in bodies])
    last = bytes(32)
    content = reference.blake3(b"", derive_key_context="nova audit 2: content of a record").digest()
    link = reference.blake3(b"", derive_key_context="nova audit 2: link of a chain").digest()
    for record in records:
        last = reference.blake3(last + reference.blake3(record[68:], key=content).digest(), key=link).digest()
        assert record[4:36] == last
    assert verify(records, chain.mark).ok


@pytest.mark.parametrize("level", ["plain", "avx2"])
def test_every_instruction_set_gives_the_same_hashes(level):
    def answers(level: str) -> bytes:
        environment = {**os.environ, "NOVA_SIMD": level}
        return subprocess.run([sys.executable, "-c", WORK], env=environment, capture_output=True, check=True).stdout

    assert answers(level) == answers("best") != b""

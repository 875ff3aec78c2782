"""What is sent in one turn of the loop travels together: many messages in one frame, told by the bytes that leave."""

import asyncio
import random

import pytest

from nova._native.frame import FrameParser
from nova.transport import Identity, Mesh, TcpTransport
from nova.transport.session import FrameType, Session
from tests import authorities

KEY = bytes(range(32))
MESSAGE = b"gossip of twenty b.."
FRAME_BYTES = 24 + 16
"""Header and MAC, which a frame costs beside its messages."""


def identity(node):
    return Identity(node, "r", "c", 1, f"{node}:1")


def test_one_frame_carries_all_messages_of_a_flush():
    one, two = (
        Session(identity(node), key=None, initiator=node == "a", nonce=node.encode() * 32, now_ns=0) for node in "ab"
    )
    ends = [one, two]
    for _ in range(6):
        for at, end in enumerate(ends):
            if data := b"".join(end.take_output()):
                ends[1 - at].receive(data, 0)
    for _ in range(500):
        assert one.send(MESSAGE)
    frames = FrameParser(1 << 24).feed(b"".join(one.take_output()))
    assert [frame.type for frame in frames] == [FrameType.DATA]


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "tls"])
def test_a_mesh_sends_what_a_turn_brings_together_in_one_frame_for_each_peer(secured):
    async def whole():
        got = dict.fromkeys("bc", 0)
        meshes = {}

        def made(node):
            def message(peer, payload):
                got[node] += 1

            tls = authorities.tls(node) if secured else None
            transport = TcpTransport(identity(node), key=KEY, tls=tls)
            meshes[node] = Mesh(
                transport, identity(node), on_message=message, on_up=lambda peer: None,
                on_down=lambda peer, reason: None, chance=random.Random(1),
            )  # fmt: skip
            return meshes[node].listen("127.0.0.1:0")

        addresses = {node: await made(node) for node in "abc"}
        try:
            meshes["a"].set_peers({node: addresses[node] for node in "bc"})
            async with asyncio.timeout(10):
                while len(meshes["a"].connected()) < 2:
                    await asyncio.sleep(0.001)
                before = {node: each.sent_bytes for node, each in meshes["a"].stats().items()}
                for _ in range(300):
                    for node in "bc":
                        assert meshes["a"].send(node, MESSAGE)
                while min(got.values()) < 300:
                    await asyncio.sleep(0.001)
            for node, each in meshes["a"].stats().items():
                cost = each.sent_bytes - before[node] - 300 * (4 + len(MESSAGE))
                assert cost < 5 * FRAME_BYTES, f"{cost} bytes beside the messages: more than a few frames"
        finally:
            await asyncio.gather(*(mesh.close() for mesh in meshes.values()))

    asyncio.run(whole())

"""Members that lie, for simulated groups: real PBFT cores whose words are twisted on their way out.

A liar has its own keys and nobody else's, so what it says is authentic and wrong. What it does with its own state does
not matter: nothing is asked of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final

from nova.consensus.core import Epoch, Kind
from nova.consensus.pbft.auth import SessionKeys
from nova.consensus.pbft.core import PBFT
from nova.consensus.pbft.messages import (
    Authentic,
    Checkpoint,
    Claim,
    Commit,
    Entries,
    NewView,
    Ordered,
    Prepare,
    PrePrepare,
    Signed,
    Stable,
    StateChunk,
    ViewChange,
    checkpoint_content,
    decode_body,
    decode_content,
    encode,
    entry_digest,
)
from nova.types import NodeId, Outputs, Random

REPLAYED_MAX: Final = 200


class DealtKeys(SessionKeys):
    """The keys of a simulated member, dealt from one secret: who knows it could speak for everybody, so a liar must not
    use it. Its signatures are MACs that all can check, since all are dealt from one hand: quick, and of no use outside.
    """

    def __init__(self, node: NodeId, members: Sequence[NodeId], secret: bytes = b"simulated") -> None:
        self._secret = secret
        super().__init__(
            {peer: blake2b(encode(sorted((node, peer))), key=secret, digest_size=32).digest() for peer in members}
        )
        self._signing = {member: blake2b(encode(member), key=secret, digest_size=32).digest() for member in members}
        self._node = node

    def sign(self, data: bytes) -> bytes:
        return blake2b(data, key=self._signing[self._node], digest_size=32).digest()

    def verify(self, signer: NodeId, data: bytes, signature: bytes) -> bool:
        key = self._signing.get(signer)
        return key is not None and blake2b(data, key=key, digest_size=32).digest() == signature


def dealt(node: NodeId, epoch: Epoch) -> DealtKeys:
    """For `nova.consensus.pbft.maker`."""
    return DealtKeys(node, epoch.members)


Behaviour = Callable[["Liar", NodeId, Any], list[Any]]
"""(who, to whom, what it would say) -> what it says instead: bodies, or `Authentic` as they are."""


class Liar:
    """A core that says something else. What it does not override is that of the sound core."""

    def __init__(self, core: PBFT, random: Random, behaviours: Sequence[Behaviour]) -> None:
        self._sound = core
        self.chance = random
        self._behaviours = list(behaviours)
        self.said: deque[tuple[NodeId, Authentic]] = deque(maxlen=REPLAYED_MAX)
        self.told: dict[tuple[int, int, NodeId], bytes] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._sound, name)
        if name not in ("step", "tick", "propose", "read", "advance", "seal", "recovered", "checkpointed"):
            return found
        return lambda *arguments: self._twisted(found(*arguments))

    def _twisted(self, out: Outputs) -> Outputs:
        out.send = [pair for peer, message in out.send for pair in self._twist(peer, message)]
        out.early = [pair for peer, message in out.early for pair in self._twist(peer, message)]
        return out

    def _twist(self, peer: NodeId, message: Authentic) -> list[tuple[NodeId, Authentic]]:
        bodies: list[Any] = [decode_body(message.body)]
        for behaviour in self._behaviours:
            bodies = [
                said
                for body in bodies
                for said in ([body] if isinstance(body, Authentic) else behaviour(self, peer, body))
            ]
        out = [(peer, body if isinstance(body, Authentic) else self.wrap(peer, body)) for body in bodies]
        self.said += out
        return out

    def wrap(self, peer: NodeId, body: Any) -> Authentic:
        """Say this with the liar's own keys."""
        return self._sound._wrap(peer, encode(body))

    def sign(self, content: ViewChange | NewView) -> Signed:
        return self._sound._signed(content)

    @property
    def members(self) -> tuple[NodeId, ...]:
        return self._sound.members

    def checkpoint(self, message: Checkpoint, digest: bytes) -> Checkpoint:
        """A checkpoint of another state, signed."""
        content = checkpoint_content(self._sound.epoch.number, message.position, digest, message.size)
        return Checkpoint(message.position, digest, message.size, self._sound._authenticator.sign(content))


def silent(liar: Liar, peer: NodeId, body: Any) -> list[Any]:
    """Says nothing."""
    return []


def deaf_to_some(liar: Liar, peer: NodeId, body: Any) -> list[Any]:
    """Talks to every other member only."""
    return [body] if liar.members.index(peer) % 2 else []


def equivocating(liar: Liar, peer: NodeId, body: Any) -> list[Any]:
    """As a primary, gives one position twice, and backs up to each what it told that one."""
    match body:
        case PrePrepare(view, position, _, kind, data) if kind == Kind.COMMANDS and liar.members.index(peer) % 2:
            other = b"" if liar.chance.random() < 0.5 else data
            kind = Kind.NOOP if not other else kind
            digest = entry_digest(kind, other)
            liar.told[view, position, peer] = digest
            return [PrePrepare(view, position, digest, kind, other)]
        case Commit(view, position, _) | Prepare(view, position, _):
            digest = liar.told.get((view, position, peer), body.digest)
            return [type(body)(view, position, digest)]
    return [body]


def wrong_digests(liar: Liar, peer: NodeId, body: Any) -> list[Any]:
    """Vouches for what is not so: votes, checkpoints, entries and states."""
    if liar.chance.random() < 0.4:
        return [body]
    junk = b"%032d" % liar.chance.randrange(1_000)
    match body:
        case Prepare(view, position, _) | Commit(view, position, _):
            return [type(body)(view, position, junk)]
        case PrePrepare(view, position, _, kind, data):
            return [PrePrepare(view, position, junk, kind, data)]
        case Checkpoint():
            return [liar.checkpoint(body, junk)]
        case StateChunk(position, digest, offset, data):
            return [StateChunk(position, digest, offset, bytes(len(data)))]
        case Ordered(entries) | Entries(entries):
            return [type(body)(tuple((position, Kind.NOOP, b"") for position, _, _ in entries))]
        case Stable(position, _, size, proof):
            return [Stable(position + 100, junk, size, proof)]
    return [body]


def replaying(liar: Liar, peer: NodeId, body: Any) -> list[Any]:
    """Says old things again, also what it once told somebody else."""
    old = [message for _, message in liar.chance.sample(list(liar.said), min(2, len(liar.said)))]
    return [*old, body] if liar.chance.random() < 0.3 else [body]


def forging(liar: Liar, peer: NodeId, body: Any) -> list[Any]:
    """Speaks for others, and out of turn, as well as it can without their keys."""
    chance = liar.chance.random()
    if chance > 0.3:
        return [body]
    sound = liar._sound
    forged = liar.wrap(peer, body)
    junk = Authentic(forged.body, bytes(len(forged.mac)))
    position = sound.executed + 1 + liar.chance.randrange(1_000)
    digest = entry_digest(Kind.NOOP, b"")
    out_of_turn = PrePrepare(sound.view, position, digest, Kind.NOOP, b"")
    other = liar.members[liar.chance.randrange(len(liar.members))]
    change = encode(ViewChange(sound.view + 2, sound.mark, (), ()))
    return [junk, out_of_turn, Signed(other, change, bytes(32)), Authentic(b"\xc1", forged.mac), body]


def lying_in_view_changes(liar: Liar, peer: NodeId, body: Any) -> list[Any]:
    """Claims to have prepared what nobody did, or nothing; as a new primary, orders something else anew."""
    if not isinstance(body, Signed) or body.signer != liar._sound.node:
        return [body]
    content = decode_content(body.content)
    junk = b"%032d" % liar.chance.randrange(3)
    if isinstance(content, NewView):
        changed = content.chosen[:-1] if content.chosen else ((content.view, junk),)
        return [liar.sign(NewView(content.view, content.view_changes, changed))]
    if liar.chance.random() < 0.5:
        return [liar.sign(ViewChange(content.view, content.stable, (), ()))]
    first = content.stable.position + 1
    claims = tuple(
        Claim(position, max(content.view - 1, 0), junk)
        for position in range(first, first + 1 + liar.chance.randrange(20))
    )
    return [liar.sign(ViewChange(content.view, content.stable, claims, claims))]


def hasty(liar: Liar, peer: NodeId, body: Any) -> list[Any]:
    """Leaves for later views without a reason, again and again."""
    if liar.chance.random() > 0.02:
        return [body]
    sound = liar._sound
    view = sound.view + 1 + liar.chance.randrange(4)
    return [body, liar.sign(ViewChange(view, sound.mark, (), ()))]


BEHAVIOURS: Final[dict[str, Behaviour]] = {
    "silent": silent,
    "deaf": deaf_to_some,
    "equivocating": equivocating,
    "digests": wrong_digests,
    "replaying": replaying,
    "forging": forging,
    "views": lying_in_view_changes,
    "hasty": hasty,
}


def some_liars(random: Random, nodes: Sequence[NodeId], count: int) -> dict[NodeId, Callable[[Any, Random], Any]]:
    """So many of these lie, each in one to three ways: for `Group(liars=...)`."""
    out: dict[NodeId, Callable[[Any, Random], Any]] = {}
    for node in sorted(random.sample(list(nodes), count)):
        names = random.sample(sorted(BEHAVIOURS), 1 + random.randrange(3))
        if "silent" in names:
            names = ["silent"]
        out[node] = _made([BEHAVIOURS[name] for name in names])
    return out


def liars_mostly(random: Random, nodes: Sequence[NodeId]) -> dict[NodeId, Callable[[Any, Random], Any]]:
    """In two of three histories as many as may, in the others none."""
    return some_liars(random, nodes, (len(nodes) - 1) // 3) if random.randrange(3) else {}


def _made(behaviours: list[Behaviour]) -> Callable[[Any, Random], Any]:
    return lambda core, random: Liar(core, random, behaviours)


__all__ = ["BEHAVIOURS", "DealtKeys", "Liar", "dealt", "liars_mostly", "some_liars"]

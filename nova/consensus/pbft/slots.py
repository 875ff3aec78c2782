"""What a member knows of one position."""

from __future__ import annotations

from nova.consensus.core import Kind
from nova.consensus.pbft.messages import NULL, Claim
from nova.types import NodeId

Content = tuple[Kind, bytes]


class Slot:
    """A position above the low mark.

    view, digest       what was accepted last, and in which view; -1: nothing
    wanted             the digest that the present new view puts here, while its entry is not here yet
    prepared           a quorum accepted it, in `view`
    prepares, commits  who said so in the present view, first word first
    last_prepared      the paper's P: (view, digest)
    accepted           the paper's Q: digest -> last view
    contents           entries by digest; `stored`: those that are in the log
    decided            digest of what stands here for ever
    claims             who says that what is decided here
    """

    __slots__ = (
        "accepted", "claims", "commits", "contents", "decided", "digest", "last_prepared", "position", "prepared",
        "prepares", "stored", "view", "wanted",
    )  # fmt: skip

    def __init__(self, position: int) -> None:
        self.position = position
        self.view = -1
        self.digest = b""
        self.wanted: bytes | None = None
        self.prepared = False
        self.prepares: dict[NodeId, bytes] = {}
        self.commits: dict[NodeId, bytes] = {}
        self.last_prepared: tuple[int, bytes] | None = None
        self.accepted: dict[bytes, int] = {}
        self.contents: dict[bytes, Content] = {NULL: (Kind.NOOP, b"")}
        self.stored: set[bytes | None] = {NULL}
        self.decided: bytes | None = None
        self.claims: dict[NodeId, bytes] = {}

    def enter(self) -> None:
        """A view begins: nobody has said anything in it."""
        self.prepared = False
        self.wanted = None
        self.prepares.clear()
        self.commits.clear()

    def accept(self, view: int, digest: bytes, digests_max: int) -> None:
        """Pre-prepared in this view; the digests of the oldest views are forgotten beyond `digests_max`."""
        self.view, self.digest, self.wanted = view, digest, None
        self.prepared = False
        self.accepted[digest] = view
        while len(self.accepted) > digests_max:
            oldest = min(self.accepted, key=lambda each: self.accepted[each])
            del self.accepted[oldest]
        self.prune()

    def prune(self) -> None:
        """Forget entries that nobody can ask for any more."""
        lasting = {*self.accepted, self.decided, NULL}
        if self.last_prepared is not None:
            lasting.add(self.last_prepared[1])
        # A recovery keeps what lasts. What is here for another reason has to be written again when it is needed.
        self.stored &= lasting
        keep = {*lasting, *self.claims.values(), self.wanted}
        for digest in [digest for digest in self.contents if digest not in keep]:
            del self.contents[digest]

    def prepare(self) -> None:
        """A quorum accepted what is accepted here."""
        self.prepared = True
        self.last_prepared = (self.view, self.digest)

    @property
    def prepared_claim(self) -> Claim | None:
        if self.last_prepared is None:
            return None
        return Claim(self.position, *self.last_prepared)

    @property
    def accepted_claims(self) -> list[Claim]:
        return [Claim(self.position, view, digest) for digest, view in sorted(self.accepted.items())]

"""What a new view has to order anew: the decision procedure of Castro & Liskov 2002 (4.4, figure 4), pure.

Normal-case messages carry MACs, so nobody can show a third one that something was prepared. View changes therefore
only claim, under a signature, and the procedure believes what enough of them agree with:

  A   a claim to have prepared (position, digest) in a view v is chosen if
  A1    a quorum claims nothing against it: all that they prepared there was in a view before v, or is just that; and
  A2    f + 1 accepted that digest there in v or later: one of them is correct, so the entry is known to somebody and
        came from a primary
  B   the null request is chosen if a quorum prepared nothing at that position
  -   otherwise more view changes have to come

An entry that a correct member executed was prepared by a quorum, of which q - f are correct; any quorum of view changes
contains one of these, so neither B nor an A for something else can hold. Here the stable checkpoint comes with its
signatures, so the newest one that anybody shows counts, without the vote of the paper (figure 4 needs that since its
checkpoints have MACs, too).
"""

from __future__ import annotations

from collections.abc import Sequence

from nova.consensus.pbft.messages import NULL, Claim, Stable, ViewChange


def newest_stable(changes: Sequence[ViewChange]) -> Stable:
    """The newest checkpoint that one of them shows to be stable."""
    return max((change.stable for change in changes), key=lambda stable: stable.position)


def chosen(changes: Sequence[ViewChange], *, f: int, quorum: int) -> tuple[tuple[int, bytes], ...] | None:
    """(position, digest) for every position above the newest stable checkpoint up to the last one that is claimed to be
    prepared; None as long as a position is open. Depends on the set of view changes alone."""
    low = newest_stable(changes).position
    prepared: list[dict[int, Claim]] = [{claim.position: claim for claim in change.prepared} for change in changes]
    accepted: list[dict[tuple[int, bytes], int]] = [
        {(claim.position, claim.digest): claim.view for claim in change.accepted} for change in changes
    ]
    out: list[tuple[int, bytes]] = []
    last = max((position for claims in prepared for position in claims), default=low)
    for position in range(low + 1, last + 1):
        digest = _chosen_at(position, [claims.get(position) for claims in prepared], accepted, f, quorum)
        if digest is None:
            return None
        out.append((position, digest))
    return tuple(out)


def _chosen_at(
    position: int, prepared: list[Claim | None], accepted: list[dict[tuple[int, bytes], int]], f: int, quorum: int
) -> bytes | None:
    candidates = sorted({(-claim.view, claim.digest) for claim in prepared if claim is not None})
    for minus_view, digest in candidates:
        view = -minus_view
        unopposed = sum(
            claim is None or claim.view < view or (claim.view == view and claim.digest == digest) for claim in prepared
        )
        known = sum(claims.get((position, digest), -1) >= view for claims in accepted)
        if unopposed >= quorum and known >= f + 1:
            return digest
    return NULL if sum(claim is None for claim in prepared) >= quorum else None

"""View change and new view: how a primary that does not do its work is replaced without losing what was executed."""

from __future__ import annotations

from abc import abstractmethod

import msgspec

from nova.consensus.core import Kind
from nova.consensus.pbft.base import VIEW
from nova.consensus.pbft.evidence import Wrong
from nova.consensus.pbft.messages import (
    DIGEST_BYTES,
    Entries,
    EntryAsk,
    NewView,
    Request,
    Signed,
    ViewChange,
    decode_content,
    encode,
    entry_digest,
    view_content,
)
from nova.consensus.pbft.ordering import Ordering
from nova.consensus.pbft.views import chosen, newest_stable
from nova.types import NodeId, Outputs


class Viewing(Ordering):
    """A member that goes from view to view."""

    def _begin_viewing(self) -> None:
        self._changes: dict[NodeId, tuple[ViewChange, Signed]] = {}  # the newest of each member
        self._new_view: Signed | None = None
        self._chosen: tuple[tuple[int, bytes], ...] = ()
        self._waited = 0  # ticks since a quorum left for this view

    @property
    def timeout_ticks(self) -> int:
        """How long a view may bring nothing: T, and twice as long after each view in a row that did."""
        return self.options.view_ticks << min(max(self._failed - 1, 0), self.options.doublings_max)

    def _tick_view(self, out: Outputs) -> None:
        oldest = self.requests.tick()
        if self.sealed_at is not None:
            return
        if self.active:
            waiting = any(p > self.executed and slot.view == self.view for p, slot in self.slots.items())
            self._stalled = self._stalled + 1 if waiting else 0
            if max(oldest, self._stalled) >= self.timeout_ticks:
                self._leave(self.view + 1, out)
        elif sum(change.view >= self.view for change, _ in self._changes.values()) >= self.quorum:
            # Before a quorum has left as well, going on would only lead away from the others.
            self._waited += 1
            if self._waited >= self.timeout_ticks:
                self._leave(self.view + 1, out)

    # -- view change --

    def _leave(self, view: int, out: Outputs) -> None:
        """Take part in no view below this one any more, and tell what may have been ordered in them."""
        self.view, self.active = view, False
        self._failed += 1
        self._waited = self._stalled = 0
        self._flying.clear()
        out.persist.append(VIEW + encode((view, False, None)))
        for slot in self.slots.values():
            slot.enter()
        signed = self._own_change()
        self._promise_all(signed)
        self._lead(out)

    def _own_change(self) -> Signed:
        slots = [slot for position, slot in sorted(self.slots.items()) if position > self.mark.position]
        prepared = tuple(claim for slot in slots if (claim := slot.prepared_claim) is not None)
        accepted = tuple(claim for slot in slots for claim in slot.accepted_claims)
        change = ViewChange(self.view, self.mark, prepared, accepted)
        signed = self._signed(change)
        self._changes[self.node] = change, signed
        return signed

    def _signed(self, content: ViewChange | NewView) -> Signed:
        packed = encode(content)
        return Signed(self.node, packed, self._authenticator.sign(view_content(self.epoch.number, packed)))

    def _verified(self, message: Signed) -> bool:
        content = view_content(self.epoch.number, message.content)
        return message.signer in self.members and self._authenticator.verify(message.signer, content, message.signature)

    def _signed_came(self, sender: NodeId, message: Signed, out: Outputs) -> None:
        try:
            content = decode_content(message.content)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
            self.evidence.count(sender, Wrong.MALFORMED)
            return
        if isinstance(content, ViewChange):
            self._view_change(sender, message, content, out)
        else:
            self._new_view_came(sender, message, content, out)

    def _view_change(self, sender: NodeId, message: Signed, change: ViewChange, out: Outputs) -> None:
        known = self._changes.get(message.signer)
        if message.signer == self.node or (known is not None and known[0].view >= change.view):
            return
        if change.view < self.view or (change.view == self.view and self.active):
            self.evidence.count(sender, Wrong.STALE)
            return
        if not self._verified(message):
            self.evidence.count(sender, Wrong.SIGNATURE)
            return
        if not self._sound(change):
            self.evidence.count(message.signer, Wrong.CONTENT)
            return
        self._changes[message.signer] = change, message
        ahead = sorted(change.view for change, _ in self._changes.values() if change.view > self.view)
        if len(ahead) > self.f:  # one of them is correct: a view ended, whatever our own timer says
            self._leave(ahead[0], out)
        else:
            self._lead(out)

    def _sound(self, change: ViewChange) -> bool:
        """It can have come from a correct member."""
        low, window = change.stable.position, self.options.window
        prepared = [claim.position for claim in change.prepared]
        accepted = [(claim.position, claim.digest) for claim in change.accepted]
        claims = (*change.prepared, *change.accepted)
        return (
            len(claims) <= window * (1 + self.options.digests_max)
            and len(set(prepared)) == len(prepared)
            and len(set(accepted)) == len(accepted)
            and all(low < c.position <= low + window and 0 <= c.view < change.view for c in claims)
            and all(len(c.digest) == DIGEST_BYTES for c in claims)
            and self._proved(change.stable)
        )

    # -- new view --

    def _lead(self, out: Outputs) -> None:
        """Begin this view, if it is ours and enough is known."""
        if self.active or self.primary != self.node:
            return
        changes = [pair for _, pair in sorted(self._changes.items()) if pair[0].view == self.view]
        if len(changes) < self.quorum:
            return
        entries = chosen([change for change, _ in changes], f=self.f, quorum=self.quorum)
        if entries is None:
            return  # more view changes will tell
        new_view = NewView(self.view, tuple(signed for _, signed in changes), entries)
        signed = self._signed(new_view)
        self._promise_all(signed)
        self._enter(new_view, signed, out)

    def _new_view_came(self, sender: NodeId, message: Signed, new_view: NewView, out: Outputs) -> None:
        if new_view.view < self.view or (new_view.view == self.view and self.active) or new_view.view < 1:
            if new_view.view < self.view:
                self.evidence.count(sender, Wrong.STALE)
            return
        if message.signer != self.primary_of(new_view.view) or message.signer == self.node:
            self.evidence.count(sender, Wrong.NOT_PRIMARY)
            return
        if not self._verified(message):
            self.evidence.count(sender, Wrong.SIGNATURE)
            return
        if not self._follows(new_view):
            self.evidence.count(message.signer, Wrong.NEW_VIEW)
            if new_view.view == self.view:
                self._leave(self.view + 1, out)
            return
        self._enter(new_view, message, out)

    def _follows(self, new_view: NewView) -> bool:
        """It has the view changes of a quorum, and orders anew just what these leave."""
        changes = self._changes_of(new_view)
        return changes is not None and chosen(changes, f=self.f, quorum=self.quorum) == new_view.chosen

    def _changes_of(self, new_view: NewView) -> list[ViewChange] | None:
        if not self.quorum <= len(new_view.view_changes) <= len(self.members):
            return None
        changes: dict[NodeId, ViewChange] = {}
        for signed in new_view.view_changes:
            known = self._changes.get(signed.signer)
            if known is not None and known[1] == signed:  # verified when it came
                change: ViewChange | NewView = known[0]
            else:
                try:
                    change = decode_content(signed.content)
                except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
                    return None
                if not isinstance(change, ViewChange) or not self._verified(signed) or not self._sound(change):
                    return None
            if change.view != new_view.view or not isinstance(change, ViewChange):
                return None
            changes[signed.signer] = change
        return list(changes.values()) if len(changes) == len(new_view.view_changes) else None

    def _enter(self, new_view: NewView, signed: Signed, out: Outputs) -> None:
        """The view begins."""
        self.view, self.active = new_view.view, True
        self._new_view, self._chosen = signed, new_view.chosen
        self._stalled = self._waited = 0
        self._flying.clear()
        out.persist.append(VIEW + encode((self.view, True, signed)))
        for slot in self.slots.values():
            slot.enter()
        stable = newest_stable(self._changes_known(new_view))
        self._covered = max([stable.position, *(position for position, _ in new_view.chosen)])
        self._stable(stable, out)
        for position, digest in new_view.chosen:
            if not self._within(position):
                continue  # stable here already, or out of reach: a state will come
            slot = self._slot(position)
            if slot.decided is not None and slot.decided != digest:
                self._fatal(out, f"a new view puts something else at the decided position {position}")
                return
            if digest in slot.contents:
                self._accept(slot, digest, out)
            else:
                slot.wanted = digest
        self._next = max(self._covered, self.executed, self.mark.position) + 1
        self._ask_entries()
        self.requests.renew()
        self._resume(out)

    @staticmethod
    def _changes_known(new_view: NewView) -> list[ViewChange]:
        """The view changes of a new view that was verified."""
        changes = [decode_content(signed.content) for signed in new_view.view_changes]
        return [change for change in changes if isinstance(change, ViewChange)]

    def _resume(self, out: Outputs) -> None:
        """What waited for a primary goes to the new one."""
        if self.leads:
            self._order_waiting(out)
            return
        for _, waiting in self.requests:
            if waiting.origin == self.node and waiting.kind != Kind.SEAL:
                self._say(self.primary, Request(waiting.kind, waiting.data))

    def _order_waiting(self, out: Outputs) -> None:
        """The primary orders what it knows to be waited for, as far as there is room."""
        if self.sealed_at is not None or self._sealing():
            return
        for name, waiting in list(self.requests):
            if not self._room():
                return
            if waiting.kind != Kind.SEAL and name not in self._flying:
                self._order(waiting.kind, waiting.data, out)
        self._order_seal(out)

    def _room(self) -> bool:
        return self._next <= self.mark.position + self.options.window

    def _sealing(self) -> bool:
        """A seal stands somewhere in this view."""
        return any(
            slot.view == self.view and slot.contents[slot.digest][0] == Kind.SEAL for slot in self.slots.values()
        )

    @abstractmethod
    def _order_seal(self, out: Outputs) -> None:
        """Let the epoch end, if this is the primary and enough members ask for it."""

    @abstractmethod
    def _answers(self, peer: NodeId, what: type) -> bool:
        """Whether a peer may be answered: one answer a tick to each kind of question."""

    # -- entries that a new view wants and this member lacks --

    def _ask_entries(self) -> None:
        wanted = [(position, slot.wanted) for position, slot in sorted(self.slots.items()) if slot.wanted is not None][
            : self.options.resend_count_max
        ]
        if wanted:
            self._say_all(EntryAsk(tuple(wanted)))

    def _entries_asked(self, sender: NodeId, message: EntryAsk) -> None:
        if not self._answers(sender, EntryAsk):
            return
        found: list[tuple[int, Kind, bytes]] = []
        size = 0
        for position, digest in message.wanted[: self.options.resend_count_max]:
            slot = self.slots.get(position)
            content = slot.contents.get(digest) if slot is not None else None
            if content is not None:
                size += len(content[1])
                if found and size > self.options.resend_bytes_max:
                    break
                found.append((position, *content))
        if found:
            self._say(sender, Entries(tuple(found)))

    def _entries_came(self, message: Entries, out: Outputs) -> None:
        if not self.active:
            return
        for position, kind, data in message.entries[: self.options.resend_count_max]:
            slot = self.slots.get(position)
            if slot is None or slot.wanted is None or entry_digest(kind, data) != slot.wanted:
                continue  # perhaps an answer to what was asked in an earlier view
            slot.contents[slot.wanted] = kind, data
            self._accept(slot, slot.wanted, out)


__all__ = ["Viewing"]

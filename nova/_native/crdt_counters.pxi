# Counters: G-Counter, PN-Counter, and the bounded counter of rights. Part of crdt.pyx.

cdef uint32_t own_row(Replica self) except? 0xFFFFFFFF:
    """Our row of a type that has one for each actor."""
    cdef Store store = self.store
    cdef uint32_t at
    cdef nova_row row
    settled(store)
    if store.me == NOVA_WHO_NONE:
        return 0
    if not self.steps:
        return nova_rows_newest(store.rows, store.me)
    at = first_at(self, NO_LEAF)
    while at:
        nova_rows_view(store.rows, at, &row)
        if row.who == store.me:
            return at
        at = nova_rows_sibling(store.rows, at)
    return 0


cdef int replace_own(Replica self, uint32_t own, Packed value) except -1:
    """One event that puts a row in the place of our own."""
    write_row(self, NO_LEAF, 0, value, own if own else BESIDE)
    return tidy(self)


cdef int totals(nova_row *row, int type, uint64_t *up, uint64_t *down) noexcept:
    cdef nova_reader r = nova_reader_of(row.value, row.nvalue)
    up[0] = nova_take_number(&r)
    down[0] = nova_take_number(&r) if type == PN_COUNTER else 0
    return 0


cdef int count_on(Replica self, int type, uint64_t more, uint64_t less) except -1:
    """Replace our own total by a new one."""
    if self.totals is not None:
        return self.totals.count(more, less)
    cdef uint64_t up = 0, down = 0
    cdef uint32_t own = own_row(self)
    cdef nova_row row
    cdef uint8_t raw[20]
    cdef Packed value
    if own:
        nova_rows_view(self.store.rows, own, &row)
        totals(&row, type, &up, &down)
    up = plus(up, more, self.store.actor)
    down = plus(down, less, self.store.actor)
    value.at = raw
    value.size = nova_put_number(raw, up)
    if type == PN_COUNTER:
        value.size += nova_put_number(raw + value.size, down)
    return replace_own(self, own, value)


cdef object sum_of(Replica self, int type):
    if self.totals is not None:
        return self.totals.value()
    cdef uint64_t up, down
    cdef uint32_t at = first_at(self, NO_LEAF)
    cdef nova_row row
    cdef object out = 0
    while at:
        nova_rows_view(self.store.rows, at, &row)
        totals(&row, type, &up, &down)
        out = out + up - down
        at = nova_rows_sibling(self.store.rows, at)
    return out


cdef class GCounter(Replica):
    """A counter that only grows: a total per actor, the value is their sum."""

    def increment(self, amount=1):
        """Count on by 1 to 2**64 - 1. A total of an actor over 64 bits is refused, never wrapped."""
        count_on(self, G_COUNTER, as_amount(amount), 0)

    @property
    def value(self):
        return sum_of(self, G_COUNTER)


cdef class PNCounter(Replica):
    """A counter that goes both ways: two totals per actor.

    In a map, removing its key drops the totals that were seen; an actor that counts on meanwhile keeps its whole total.
    """

    def increment(self, amount=1):
        """Count up by 1 to 2**64 - 1."""
        count_on(self, PN_COUNTER, as_amount(amount), 0)

    def decrement(self, amount=1):
        """Count down by 1 to 2**64 - 1."""
        count_on(self, PN_COUNTER, 0, as_amount(amount))

    @property
    def value(self):
        return sum_of(self, PN_COUNTER)


cdef int check_account(object account, str actor) except -1:
    """[added, taken, {to: given}]: what one actor did, all of it positive."""
    if (type(account) is not list or len(account) != 3 or type(account[2]) is not dict
            or type(account[0]) is not int or type(account[1]) is not int or account[0] < 0 or account[1] < 0
            or not all([type(to) is str and to and to != actor and type(given) is int and given > 0
                        for to, given in (<dict>account[2]).items()])):
        raise malformed(WHAT, f"the account of actor {actor!r} is no account")
    return 0


cdef class BoundedCounter(Replica):
    """A counter that never goes below 0, however replicas are cut off (escrow; Balegas et al. 2015).

    Each actor holds rights: what it added, plus what others gave it, less what it took and gave away. It takes only
    what it has rights for, so no replica needs to ask another, and the sum over all cannot be overdrawn.
    """

    cdef dict accounts(self):
        return {self.store.names[who]: decode(payload) for who, payload in payloads(self, NO_LEAF)}

    cdef int settle(self, list account) except -1:
        """Replace our own account by a new one."""
        cdef bytes payload
        cdef Packed packed
        for total in (account[0], account[1], *account[2].values()):
            if total > U64_MAX:
                raise UsageError(f"a total of actor {self.store.actor!r} would be over 2**64 - 1; go on under a new actor")
        payload = pack(account)
        packed.at, packed.size = <const uint8_t *>PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload)
        return replace_own(self, own_row(self), packed)

    def rights_of(self, actor):
        """How much an actor may take, as far as is known here."""
        cdef dict accounts = self.accounts()
        added, taken, given = accounts.get(actor, (0, 0, {}))
        return added - taken - sum(given.values()) + sum([other[2].get(actor, 0) for other in accounts.values()])

    @property
    def rights(self):
        """How much this replica may take now."""
        return self.rights_of(self.store.actor) if self.store.actor is not None else 0

    cdef list spend(self, object amount, str what):
        """Our account, after rights for the amount were found."""
        cdef object more = as_amount(amount), rights = self.rights
        if self.store.actor is not None and more > rights:
            raise UnavailableError(
                f"{what} {amount} needs as many rights; actor {self.store.actor!r} holds {rights}: "
                "wait for a transfer from a replica that has some")
        return list(self.accounts().get(self.store.actor, (0, 0, {})))

    def increment(self, amount=1):
        """Add 1 to 2**64 - 1, and hold the rights for it."""
        cdef object more = as_amount(amount)
        account = self.accounts().get(self.store.actor, [0, 0, {}])
        account[0] += more
        self.settle(account)

    def decrement(self, amount=1):
        """Take from the counter. raises UnavailableError, which names the rights held here, if they are too few."""
        account = self.spend(amount, "decrement by")
        account[1] += amount
        self.settle(account)

    def transfer(self, to, amount):
        """Give rights to another actor, who can use them when it has heard. raises UnavailableError as decrement does."""
        if not isinstance(to, str) or not to or to == self.store.actor:
            raise UsageError(f"rights cannot go to {to!r}; name another actor")
        to = as_actor(to)
        account = self.spend(amount, "transfer of")
        account[2] = {**account[2], to: account[2].get(to, 0) + amount}
        self.settle(account)

    @property
    def value(self):
        return sum([added - taken for added, taken, _ in self.accounts().values()])

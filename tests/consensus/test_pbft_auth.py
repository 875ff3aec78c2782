"""Keys of PBFT members, and what a group does with real ones."""

from __future__ import annotations

import builtins
import random

import pytest

from nova.consensus.core import Epoch, Kind
from nova.consensus.pbft import PBFT, Ed25519Keys, SessionKeys, maker
from nova.consensus.pbft.messages import Signed, decode_body
from nova.errors import NovaError, UsageError
from tests.consensus.pbft_net import Net, T, command

ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")

NAMES = ("0", "1", "2", "3")


def ring():
    """Keys of four members, as an operator deals them."""
    chance = random.Random(5)
    private = {name: chance.randbytes(32) for name in NAMES}
    public = {
        name: ed25519.Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
        for name, key in private.items()
    }
    shared = {frozenset((a, b)): chance.randbytes(32) for a in NAMES for b in NAMES}
    return {
        name: Ed25519Keys(private[name], public, {peer: shared[frozenset((name, peer))] for peer in NAMES})
        for name in NAMES
    }


def test_a_mac_convinces_its_receiver_of_just_these_bytes():
    keys = ring()
    mac = keys["0"].mac("1", b"data")
    assert keys["1"].check("0", b"data", mac)
    assert not keys["1"].check("0", b"date", mac)
    assert not keys["1"].check("0", b"data", mac[:-1])
    assert not keys["2"].check("0", b"data", mac)
    assert not keys["1"].check("2", b"data", mac)
    assert not keys["1"].check("9", b"data", mac)


def test_a_signature_convinces_everybody_of_its_signer():
    keys = ring()
    signature = keys["0"].sign(b"data")
    assert all(each.verify("0", b"data", signature) for each in keys.values())
    assert not keys["1"].verify("0", b"date", signature)
    assert not keys["1"].verify("2", b"data", signature)
    assert not keys["1"].verify("9", b"data", signature)
    assert not keys["1"].verify("0", b"data", b"")


def test_keys_that_are_none_are_refused():
    with pytest.raises(UsageError, match="15 bytes; give 16 to 64"):
        SessionKeys({"1": bytes(15)})
    with pytest.raises(UsageError, match="no key for 2"):
        SessionKeys({"1": bytes(16)}).mac("2", b"")
    with pytest.raises(UsageError, match="has 32 bytes; this one has 3"):
        Ed25519Keys(bytes(3), {}, {})
    with pytest.raises(UsageError, match="public key of 1 has 4 bytes"):
        Ed25519Keys(bytes(32), {"1": bytes(4)}, {})


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    imported = builtins.__import__

    def missing(name, *arguments):
        if name.startswith("cryptography"):
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(NovaError, match=r"novacron\[audit\]"):
        Ed25519Keys(bytes(32), {}, {})


def test_a_group_with_real_keys_orders_changes_views_and_takes_checkpoints():
    keys = ring()
    net = Net(4, checkpoint_interval=10, window=20)
    for name, member in net.members.items():
        epoch = Epoch(0, "pbft", NAMES, options=net.options)
        member.core = PBFT(name, epoch, random.Random(name), lambda: 0, authenticator=keys[name])
    for number in range(1, 16):
        net[0].propose(command(number))
        net.deliver()
    assert all(member.core.low.position == 10 for member in net)
    net.crash(0)
    net[2].ask(command(16))
    net.run(2 * T)
    assert {member.core.view for member in net if member.core} == {1}
    assert all(net[alive].commands[-1] == (16, command(16)) for alive in (1, 2, 3))
    assert not net[1].core.evidence.of("2")


def test_keys_are_fetched_when_they_are_needed():
    keys, fetched = ring(), []

    def fetch(node, epoch):
        fetched.append((node, epoch.number))
        return keys[node]

    core = maker(fetch)("0", Epoch(3, "pbft", NAMES), random.Random(1), lambda: 0)
    assert fetched == []  # perhaps only to see whether this epoch could be
    core.propose([(Kind.COMMANDS, command(1))])
    assert fetched == [("0", 3)]
    with pytest.raises(UsageError, match="is no member"):
        maker(fetch)("9", Epoch(3, "pbft", NAMES), random.Random(1), lambda: 0)


def test_a_body_cannot_be_turned_round_or_carried_into_another_epoch():
    net = Net(4)
    net[0].propose(command(1))
    message = next(message for source, target, message in net.flying if target == "3")
    assert net[3].core.opened("0", message).kind == Kind.COMMANDS
    assert net[0].core.opened("3", message) is None
    other = PBFT(
        "3",
        Epoch(1, "pbft", net.names, options=net.options),
        random.Random(1),
        lambda: 0,
        authenticator=net[3].core._authenticator,
    )
    assert other.opened("0", message) is None
    assert not isinstance(decode_body(message.body), Signed)

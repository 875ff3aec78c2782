"""The parts of the demonstration: the oracle that nothing gets past, the client, the conflicting changes."""

from __future__ import annotations

import asyncio
import random

import pytest

from nova.cli.demo import conflicting_changes, examples, quantiles
from nova.cli.demo_oracle import Acked, Held, Ledger, Sibling, check, leaves, rule
from nova.client import Client, key_target
from nova.errors import KeyNotFoundError, PeerError, UnavailableError, UsageError

KEY = "vm/a"


def verdict(writes, value, siblings=(), unknown=(), discarded=None):
    ledger = Ledger()
    for write in writes:
        ledger.add(write)
    for changes in unknown:
        ledger.maybe(KEY, changes)
    held = [] if value is None else [Held(KEY, value, list(siblings))]
    return check(ledger, ledger.expected(), held, discarded)


def write(actor, count, stamp, changes, **seen):
    return Acked(KEY, actor, count, {**seen, actor: count}, stamp, changes)


# x made the VM; x and y, not knowing of each other, changed it
BASE = write("x", 1, 1, {"id": "a", "cpu": 2, "power_state": "stopped", "tags": ["t"], "owner": "o"})
HERE = write("x", 2, 2, {"power_state": "running", "cpu": 4})
THERE = write("y", 1, 3, {"power_state": "paused"}, x=1)
MERGED = {"id": "a", "cpu": 4, "power_state": "running", "tags": ["t"], "owner": "o"}
PAUSED = Sibling("/power_state", "paused")


def test_what_was_acknowledged_and_is_there_is_accepted():
    assert verdict([BASE, HERE, THERE], MERGED, [PAUSED, Sibling("/power_state", "running")]) == ([], [])


def test_a_discarded_value_counts_if_a_conflict_records_it():
    assert verdict([BASE, HERE, THERE], MERGED, [], (), {(KEY, "/power_state", '"paused"')}) == ([], [])


def test_a_concurrent_write_without_any_record_is_lost():
    lost, wrong = verdict([BASE, HERE, THERE], MERGED)
    assert len(lost) == 1
    assert "paused" in lost[0]
    assert wrong == []


def test_a_lost_field_and_a_lost_key_are_found():
    lost, _ = verdict([BASE, HERE], {name: value for name, value in MERGED.items() if name != "tags"})
    assert lost == ["vm/a/tags/t: true was acknowledged and is gone"]
    lost, _ = verdict([BASE, HERE], None)
    assert len(lost) == 5


def test_an_old_value_in_place_of_a_newer_acknowledged_one_is_found():
    lost, wrong = verdict([BASE, HERE], MERGED | {"cpu": 2})
    assert len(lost) == len(wrong) == 1
    assert "/cpu: 4 was acknowledged" in lost[0]


def test_a_wrong_merge_is_found():
    siblings = [PAUSED, Sibling("/power_state", "running")]
    lost, wrong = verdict([BASE, HERE, THERE], MERGED | {"power_state": "paused"}, siblings)
    assert lost == []
    assert len(wrong) == 1
    assert 'make "running"' in wrong[0]


def test_who_starts_a_vm_says_where_it_is_and_so_a_removal_elsewhere_leaves_it_a_place():
    made = write("x", 1, 1, {"id": "a", "power_state": "stopped", "host": "h", "owner": "o"})
    started, removed = write("x", 2, 2, {"power_state": "running"}), write("y", 1, 3, None, x=1)
    assert verdict([made, started, removed], {"power_state": "running", "host": "h"}) == ([], [])
    lost, _ = verdict([made, started, removed], {"power_state": "running"})
    assert lost == ['vm/a/host: "h" was acknowledged and is gone']
    resized = write("x", 2, 2, {"cpu": 4})
    assert "nobody wrote" in verdict([made, resized, removed], {"cpu": 4, "host": "h"}).wrong[0]


def test_who_moves_a_running_vm_names_it():
    made = write("x", 1, 1, {"id": "a", "power_state": "running", "host": "h"})
    moved, removed = write("x", 2, 2, {"host": "i"}), write("y", 1, 3, None, x=1)
    assert verdict([made, moved, removed], {"id": "a", "host": "i"}) == ([], [])


def test_a_value_that_nobody_wrote_is_found():
    _, wrong = verdict([BASE, HERE], MERGED | {"host": "h"})
    assert "which nobody wrote" in wrong[0]
    ledger = Ledger()
    assert "nobody wrote" in check(ledger, ledger.expected(), [Held("vm/z", {"cpu": 1})]).wrong[0]


def test_a_write_without_an_answer_may_be_there_or_not():
    unknown = [{"labels": {"load": "x"}}]
    assert verdict([BASE, HERE], MERGED, [], unknown) == ([], [])
    assert verdict([BASE, HERE], MERGED | {"labels": {"load": "x"}}, [], unknown) == ([], [])
    assert verdict([BASE, HERE], MERGED | {"labels": {"load": "y"}}, [], unknown).wrong


def test_a_later_write_that_knew_the_others_supersedes_them():
    settled = write("y", 2, 4, {"power_state": "suspended"}, x=2)
    assert verdict([BASE, HERE, THERE, settled], MERGED | {"power_state": "suspended"}) == ([], [])
    assert verdict([BASE, HERE, THERE, settled], MERGED).wrong


def test_a_delete_takes_what_it_saw_and_an_update_it_had_not_seen_stays():
    gone = write("y", 1, 3, None, x=1)
    assert verdict([BASE, gone], None) == ([], [])
    assert verdict([BASE, gone], {"cpu": 2}).wrong
    assert verdict([BASE, HERE, gone], {"power_state": "running", "cpu": 4}) == ([], [])
    assert verdict([BASE, HERE, gone], None).lost


def test_a_member_written_as_it_stands_outlives_a_concurrent_removal():
    again = write("x", 2, 2, {"tags": {"t": True}, "owner": "p"})
    removed = write("y", 1, 3, {"tags": {"t": None}, "name": "n"}, x=1)
    value = {"id": "a", "cpu": 2, "power_state": "stopped", "tags": ["t"], "owner": "p", "name": "n"}
    assert verdict([BASE, again, removed], value) == ([], [])


def test_the_order_of_acknowledgements_does_not_matter():
    siblings = [PAUSED, Sibling("/power_state", "running")]
    writes = [BASE, HERE, THERE]
    for seed in range(6):
        random.Random(seed).shuffle(writes)
        assert verdict(list(writes), MERGED, siblings) == ([], [])


@pytest.mark.parametrize(
    ("path", "values", "settled"),
    [
        ("/power_state", ["running", "stopped"], "running"),
        ("/cpu", [24, 8], 24),
        ("/owner", ["a", "b"], "b"),
        (
            "/disks/d",
            [{"id": "d", "size_gb": 9}, {"id": "d", "size_gb": 5, "path": "p"}],
            {"id": "d", "size_gb": 9, "path": "p"},
        ),
        (
            "/migration",
            [{"status": "running", "epoch": 1}, {"status": "completed", "epoch": 1}],
            {"status": "running", "epoch": 1},
        ),
        (
            "/migration",
            [{"status": "running", "epoch": 1}, {"status": "failed", "epoch": 2}],
            {"status": "failed", "epoch": 2},
        ),
    ],
)
def test_the_oracle_follows_the_field_rules_of_a_vm(path, values, settled):
    assert rule(path, values) == settled


def test_the_oracle_and_the_store_agree_on_the_rules():
    vm = pytest.importorskip("nova.conflict.vm")
    strategies = pytest.importorskip("nova.conflict.strategies")
    detect = pytest.importorskip("nova.conflict.detect")
    clock = pytest.importorskip("nova.clock")
    merge = strategies.strategy_named("semantic")
    for number in range(24):
        near, far = conflicting_changes(number, 100)
        if far is None:
            continue
        sides = [leaves(near), leaves(far)]
        for path in sides[0].keys() & sides[1].keys():
            versions = [
                detect.Version(side[path], clock.VectorClock({name: 1}), stamp, name)
                for name, stamp, side in (("x", 1, sides[0]), ("y", 2, sides[1]))
            ]
            if versions[0].value == versions[1].value:
                continue
            found = detect.ConflictDetector().examine("vm/a", "vm", {path: versions}, leaves={})
            settled = merge.resolve(found).settled[path]
            assert settled == rule(path, [version.value for version in versions]), path
        assert vm.split_patch(near, {})


def test_every_kind_of_conflict_of_the_specification_is_provoked():
    fields = {name for number in range(12) for side in conflicting_changes(number, 100) if side for name in side}
    assert {
        "power_state",
        "cpu",
        "memory_mb",
        "disks",
        "networks",
        "migration",
        "tags",
        "labels",
        "snapshots",
    } <= fields
    assert sum(conflicting_changes(number, 100)[1] is None for number in range(12)) == 1


def test_examples_and_quantiles_are_for_reading():
    assert quantiles([]) is None
    assert quantiles([float(n) for n in range(101)]) == {"p50": 50.0, "p99": 99.0, "count": 101}
    record = {
        "key": KEY,
        "types": ["concurrent_update"],
        "paths": ["/cpu"],
        "versions": [{"origin": "x", "values": {"/cpu": 1}}, {"origin": "y", "values": {"/cpu": 2}}],
        "resolution": {"strategy": "semantic", "values": {"/cpu": 2}, "explanation": ["/cpu: 2 is the maximum"]},
    }
    [example] = examples([record, record])
    assert example["sides"] == {"x": 1, "y": 2}
    assert example["because"] == "/cpu: 2 is the maximum"


# --- the client ---------------------------------------------------------------------------------------------------


async def scripted(reply, use, **settings):
    """Runs `use(client)` against a server that answers each request head with reply(head, body) -> bytes or None."""

    async def talk(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
                answer = reply(head, await reader.readexactly(size))
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = Client(f"http://127.0.0.1:{port}", **settings)
    try:
        return await use(client)
    finally:
        await client.close()
        server.close()


def answered(status, body, chunked=False):
    if chunked:
        parts = b"".join(b"%x\r\n%s\r\n" % (1, body[at : at + 1]) for at in range(len(body)))
        return b"HTTP/1.1 %d x\r\ntransfer-encoding: chunked\r\n\r\n%s0\r\n\r\n" % (status, parts)
    return b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


@pytest.mark.parametrize("chunked", [False, True])
def test_pipelined_requests_get_their_own_answers(chunked):
    async def use(client):
        return await asyncio.gather(*(client.get(f"/{number}") for number in range(200)))

    def reply(head, body):
        return answered(200, head.split(b" ")[1][1:], chunked)

    assert asyncio.run(scripted(reply, use)) == list(range(200))


def test_the_token_goes_with_every_request():
    async def use(client):
        return (await client.request("PUT", key_target("vm/a b?"), b"{}")).body.decode()

    head = asyncio.run(scripted(lambda head, body: answered(200, head), use, token="secret"))
    assert "authorization: Bearer secret\r\n" in head
    assert head.startswith("PUT /v1/keys/vm/a%20b%3F HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (answered(404, b'{"code":"not_found","error":"no such key"}'), KeyNotFoundError, "no such key"),
        (answered(400, b'{"code":"bad_request","error":"what"}'), UsageError, "what"),
        (answered(503, b"<html>"), UnavailableError, "<html>"),
        (answered(200, b"<html>"), PeerError, "no JSON"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", UnavailableError, "malformed answer"),
        (b"HTTP/1.1 200 x\r\ncontent-length: -4\r\n\r\n", UnavailableError, "malformed answer"),
        (b"HTTP/1.1 200 x\r\ncontent-length: 99999999999\r\n\r\n", UnavailableError, "the limit is"),
        (None, UnavailableError, "closed the connection"),
    ],
)
def test_a_bad_answer_is_one_clear_error(answer, error, says):
    with pytest.raises(error, match=says):
        asyncio.run(scripted(lambda head, body: answer, lambda client: client.get("/v1/status")))


def test_a_silent_node_and_a_missing_node_are_unavailable():
    with pytest.raises(UnavailableError, match=r"did not answer GET / within 0\.2 s"):
        asyncio.run(scripted(lambda head, body: b"", lambda client: client.get("/"), timeout_s=0.2))

    async def nowhere():
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        await Client(f"127.0.0.1:{port}").get("/")

    with pytest.raises(UnavailableError, match="cannot reach"):
        asyncio.run(nowhere())


def test_a_client_goes_on_after_a_broken_connection():
    answers = iter([answered(200, b"1"), None, answered(200, b"2")])

    async def use(client):
        first = await client.get("/")
        with pytest.raises(UnavailableError):
            await client.get("/")
        return first, await client.get("/")

    assert asyncio.run(scripted(lambda head, body: next(answers), use)) == (1, 2)


def test_a_watch_yields_the_data_of_changes_and_not_the_comments():
    stream = b': keep-alive\n\nid: 1\nevent: change\ndata: {"key":"a"}\n\nid: 2\nevent: change\ndata: {"key":"b"}\n\n'

    async def use(client):
        return [data async for data in client.watch("", 0)]

    assert asyncio.run(scripted(lambda head, body: answered(200, stream, chunked=True), use)) == [
        b'{"key":"a"}',
        b'{"key":"b"}',
    ]


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://h:99999", "http://h:x"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(UsageError, match="node address"):
        Client(url)

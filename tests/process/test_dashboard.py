"""The dashboard in a real browser: live data, nothing from elsewhere, nothing to complain about."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fake_nodes import FakeCluster, conflict, fake_cluster
from real_nodes import TOKEN
from test_strong_nodes import leader_of, strong

pytest.importorskip("nicegui", reason="the dashboard needs the extra ui: pip install 'novacron[ui]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="the browser test needs the extra test")

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("NOVA_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

pytestmark = [pytest.mark.process, pytest.mark.browser]


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def listening(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


@contextlib.contextmanager
def dashboard(node: str, token: str, folder: Path) -> Iterator[str]:
    port = free_port()
    log = folder / "dashboard.log"
    # NiceGUI takes part in tests if it sees that it runs under one; this is the real thing.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NICEGUI", "NOVA"))
    }
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "nova", "dashboard", "--node", f"http://{node}", "--listen", f"127.0.0.1:{port}"],
            env=environment | {"NOVA_TOKEN": token},
            stdout=out,
            stderr=out,
            cwd=ROOT,
        )
    try:
        eventually(lambda: listening(port) or process.poll() is not None, 30)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("no Chromium; install it: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    with sync_api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(folder / "profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=ARGUMENTS,
            viewport={"width": 1500, "height": 1000},
        )
        yield context
        context.close()


def first_of(cluster: FakeCluster) -> str:
    return next(iter(cluster.urls.values()))  # the dashboard finds the others by itself


def test_a_manual_conflict_is_decided_in_the_browser(page_of, nodes, tmp_path):
    a, b = nodes.start("a", "b", environment={"NOVA_STRATEGIES": "m/=manual", "NOVA_KINDS": "m/=map"})
    base = a.put("m/1", {"cpus": 1, "name": "base"})["clock"]
    eventually(lambda: b.get("m/1") is not None)
    a.cut(b)
    b.cut(a)
    a.put("m/1", {"cpus": 4}, merge=True)
    b.put("m/1", {"cpus": 8}, merge=True)
    a.heal()
    b.heal()
    eventually(lambda: a.call("GET", "/v1/decisions")["waiting"] and b.call("GET", "/v1/decisions")["waiting"])
    with dashboard(a.http, TOKEN, tmp_path) as url:
        page = page_of.new_page()
        page.goto(url)
        waits = page.get_by_test_id("waiting")
        waits.wait_for()
        assert waits.get_by_text("8 of b").count() == 1
        b.put("m/1", {"cpus": 16}, merge=True, context=base)  # by somebody who has not seen the others
        waits.get_by_text("16 of b").wait_for()
        waits.get_by_text("4 of a").click()
        waits.get_by_role("button", name="Decide").click()
        waits.wait_for(state="hidden")
        page.close()
    eventually(lambda: (b.get("m/1") or {}).get("value") == {"cpus": 4, "name": "base"})
    assert a.call("GET", "/v1/decisions")["waiting"] == []
    told = a.call("GET", "/v1/why/m/1")["text"]
    assert "the dashboard decided" in told, told


def test_a_key_is_brought_back_in_the_browser_and_newer_writes_stay(page_of, nodes, tmp_path):
    (a,) = nodes.start("a", environment={"NOVA_KINDS": "m/=map"})
    a.put("m/1", {"cpus": 1, "name": "base"})
    a.call("POST", "/v1/points/m/1", {"note": "before"})
    a.put("m/1", {"cpus": 64}, merge=True)
    with dashboard(a.http, TOKEN, tmp_path) as url:
        page = page_of.new_page()
        page.goto(url)
        page.get_by_label("Key").fill("m/1")
        page.get_by_role("button", name="Why").click()
        point = page.get_by_test_id("point").filter(has_text="before")
        point.wait_for()
        a.put("m/1", {"name": "late"}, merge=True)  # nobody at the page has seen it
        point.get_by_role("button", name="Roll back").click()
        page.get_by_text("1 newer writes stay").wait_for()
        page.get_by_role("button", name="Audit trail").click()
        page.get_by_test_id("trail").get_by_text("rollback").wait_for()
        page.close()
    assert a.get("m/1")["value"] == {"cpus": 1, "name": "late"}
    assert "by the dashboard" in a.call("GET", "/v1/why/m/1")["text"]


def test_the_dashboard_shows_a_live_cluster_without_errors_or_outside_requests(page_of, tmp_path):
    with fake_cluster() as cluster, dashboard(first_of(cluster), cluster.token, tmp_path) as url:
        page = page_of.new_page()
        complaints: list[str] = []
        asked: list[str] = []
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        begin = time.monotonic()
        page.goto(url)
        page.get_by_test_id("node").first.wait_for()
        filled_s = time.monotonic() - begin

        # all three regions, found through one of them
        eventually(lambda: page.get_by_test_id("node").count() == 3)
        for region in cluster.urls:
            eventually(lambda region=region: page.locator("svg.world text", has_text=region).count() == 1)
        eventually(lambda: "all 3 nodes hold the same" in page.get_by_test_id("state").inner_text())
        assert page.get_by_test_id("conflict").count() == 6
        assert "ranks highest of running" in page.locator(".feed").inner_text()
        eventually(lambda: "68 ms" in page.locator("svg.world").last.inner_html())
        eventually(lambda: page.locator("canvas").count() == 1)
        page.screenshot(path=str(tmp_path / "light.png"), full_page=True)

        # what changes in the cluster changes on the page, by itself
        cluster.conflicts.insert(0, conflict(100))
        eventually(lambda: "vm/vm-000100" in page.locator(".feed").inner_text())
        cluster.cut.add("ap-southeast")
        eventually(lambda: "links are cut" in page.get_by_test_id("state").inner_text())
        cluster.cut.clear()
        cluster.digests["eu-west"] = "77" * 16
        eventually(lambda: "2 different states" in page.get_by_test_id("state").inner_text())

        page.get_by_label("Key").fill("vm/vm-000001")
        page.get_by_role("button", name="Why").click()
        eventually(lambda: "vm/vm-000001 holds what us-east wrote" in page.locator(".why").inner_text())

        page.get_by_role("button", name="dark").click()
        eventually(lambda: "body--dark" in (page.locator("body").get_attribute("class") or ""))
        assert page.locator("img").count() == 0  # values from nodes are text, never markup
        picture = tmp_path / "dark.png"
        page.screenshot(path=str(picture), full_page=True)
        assert picture.stat().st_size > 20_000
        page.close()

        assert complaints == []
        own = urlsplit(url).netloc
        assert {urlsplit(address).netloc for address in asked if not address.startswith(("data:", "blob:"))} == {own}
        assert filled_s < 2.0 or os.environ.get("CI"), f"the first filled page took {filled_s:.2f} s"


def test_the_group_of_strong_keys_is_shown_as_it_changes(page_of, nodes, tmp_path):
    group = nodes.start("a", "b", "c", environment=strong("abc"))
    a = group[0]
    leader = leader_of(group)
    a.put("cfg/x", 1)
    with dashboard(a.http, TOKEN, tmp_path) as url:
        page, plain = page_of.new_page(), page_of.new_page()
        complaints: list[str] = []
        for each in (page, plain):
            each.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(url)
        card = page.get_by_test_id("group")
        card.wait_for()
        rows = card.get_by_test_id("member")

        def shows(node):
            return any(row.startswith(f"{node.name}\tleader\tyes") for row in rows.all_inner_texts())

        eventually(lambda: rows.count() == 3 and shows(leader))
        eventually(lambda: "0 raft" in card.locator(".chain").inner_text())
        # all caught up: no member is behind, and each has applied the same
        eventually(lambda: {row.split("\t")[3] for row in rows.all_inner_texts()} == {"0"})
        plain.goto(f"http://{a.http}/")
        plain.get_by_label("Token").fill(TOKEN)
        plain.get_by_role("button", name="Show").click()
        plain.locator("#group").wait_for()
        eventually(lambda: plain.locator("#leader").inner_text() == leader.name)

        other = next(node for node in group if node is not leader)
        leader.call("POST", "/v1/consensus/transfer", {"node": other.name})
        eventually(lambda: shows(other) and not shows(leader))
        other.call("POST", "/v1/consensus/switch", {"protocol": "paxos"})
        eventually(lambda: "0 raft → 1 paxos" in card.locator(".chain").inner_text())
        eventually(lambda: plain.locator("#epochs").inner_text() == "0 raft → 1 paxos")
        assert plain.locator("#member-rows tr").count() == 3
        follower = next(node for node in group if node is not leader_of(group) and node is not a)
        follower.kill()
        eventually(lambda: any(row.split("\t")[2] == "no" for row in rows.all_inner_texts()))
        assert complaints == []
        page.close()
        plain.close()


def test_the_dashboard_refuses_to_listen_beyond_loopback():
    done = subprocess.run(
        [sys.executable, "-m", "nova", "dashboard", "--listen", "0.0.0.0:8421"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "beyond loopback" in done.stderr
    assert done.stderr.count("\n") == 1

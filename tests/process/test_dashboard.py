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
def dashboard(cluster: FakeCluster, folder: Path) -> Iterator[str]:
    port = free_port()
    log = folder / "dashboard.log"
    first = next(iter(cluster.urls.values()))  # it finds the others by itself
    # NiceGUI takes part in tests if it sees that it runs under one; this is the real thing.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NICEGUI", "NOVA"))
    }
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "nova", "dashboard", "--node", f"http://{first}", "--listen", f"127.0.0.1:{port}"],
            env=environment | {"NOVA_TOKEN": cluster.token},
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


def test_the_dashboard_shows_a_live_cluster_without_errors_or_outside_requests(page_of, tmp_path):
    with fake_cluster() as cluster, dashboard(cluster, tmp_path) as url:
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
            assert page.locator("svg.world text", has_text=region).count() == 1
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

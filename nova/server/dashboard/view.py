"""What the dashboard knows of a cluster: it asks every node once a second and remembers the last minutes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections import deque
from typing import Any, Final

from nova.client import Client
from nova.errors import KeyNotFoundError, NovaError

log = logging.getLogger("nova.dashboard")

POLL_S: Final = 1.0
HISTORY: Final = 180
FEED: Final = 12
NODES_MAX: Final = 64
TRAIL: Final = 20


class NodeView:
    """One node, as it last answered."""

    def __init__(self, url: str, token: str | None, tls: ssl.SSLContext | None = None) -> None:
        self.url = url
        self.client = Client(url, token=token, timeout_s=3.0, tls=tls)
        self.name = url.partition("://")[2]
        self.region = ""
        self.status: dict[str, Any] = {}
        self.peers: list[dict[str, Any]] = []
        self.group: dict[str, Any] | None = None
        self.error = "not asked yet"
        self.rate = 0.0
        self.link_bps: dict[str, float] = {}
        """peer -> bit/s that this node has sent to it, over the last round."""
        self._last: tuple[float, int, int] | None = None
        self._sent: dict[str, int] = {}

    @property
    def up(self) -> bool:
        return not self.error

    async def ask(self) -> None:
        try:
            status, peers = await asyncio.gather(self.client.get("/v1/status"), self.client.get("/v1/peers"))
            self.group = await self.client.get("/v1/consensus") if "strong_keys" in status else None
        except NovaError as error:
            self.error, self.rate, self._last = str(error), 0.0, None
            self.link_bps, self._sent = {}, {}
            return
        self.error = ""
        self.status, self.peers = status, peers["peers"]
        self.name, self.region = status["name"], status["region"]
        now = time.monotonic()
        if self._last is not None and self._last[2] == status["incarnation"] and now > self._last[0]:
            self.rate = max(0.0, (status["writes_total"] - self._last[1]) / (now - self._last[0]))
        sent = {peer["node"]: peer["sent_bytes"] for peer in self.peers}
        if self._last is not None and self._last[2] == status["incarnation"] and now > self._last[0]:
            passed_s = now - self._last[0]
            self.link_bps = {
                node: 8 * max(0, count - self._sent[node]) / passed_s
                for node, count in sent.items()
                if node in self._sent
            }
        self._last, self._sent = (now, status["writes_total"], status["incarnation"]), sent


class ClusterView:
    """All nodes. Those that peers name are added by themselves, up to NODES_MAX."""

    def __init__(self, urls: list[str], token: str | None, tls: ssl.SSLContext | None = None) -> None:
        self._token, self._tls = token, tls
        self.nodes = {url.rstrip("/"): NodeView(url.rstrip("/"), token, tls) for url in urls}
        self._given = set(self.nodes)
        self.conflicts: dict[str, Any] = {"conflicts": [], "total": 0, "by_type": {}, "by_strategy": {}}
        self.waiting: list[dict[str, Any]] = []
        self.times: deque[int] = deque(maxlen=HISTORY)
        self.rates: dict[str, deque[float]] = {}
        self.lags: deque[int] = deque(maxlen=HISTORY)
        self.rounds = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for node in self.nodes.values():
            await node.client.close()

    @property
    def up(self) -> list[NodeView]:
        return [node for node in self.nodes.values() if node.up]

    @property
    def digests(self) -> set[str]:
        return {node.status["digest"] for node in self.up}

    def group(self) -> dict[str, Any] | None:
        """The group of the strong keys as the node tells it that is furthest; a leader, who knows how far the others
        are, goes before one that follows it. Epochs are those that any node has seen. None: no node has a group."""
        told = [node.group for node in self.up if node.group is not None]
        if not told:
            return None
        best = max(told, key=lambda each: (each["epoch"], each["term"], each["role"] == "leader", each["applied"]))
        epochs = {link["number"]: link for each in told for link in each["epochs"]}
        own = {each["node"]: each for each in told}
        members = [
            {**member, "applied": own[member["node"]]["applied"] if member["node"] in own else None}
            for member in best["members"]
        ]
        return {**best, "members": members, "epochs": [epochs[number] for number in sorted(epochs)]}

    def regions(self) -> dict[str, dict[str, Any]]:
        """region -> its hybrid keys as the node tells them that has its newest change, and `here`: node -> changes that
        it has. Empty: no node has such keys."""
        told = {node.name: node.status["hybrid"]["regions"] for node in self.up if "hybrid" in node.status}
        out: dict[str, dict[str, Any]] = {}
        for owner in sorted({owner for regions in told.values() for owner in regions}):
            here = {node: regions[owner] for node, regions in sorted(told.items()) if owner in regions}
            newest = max(here.values(), key=lambda held: held["revision"])
            out[owner] = {**newest, "here": {node: held["revision"] for node, held in here.items()}}
        return out

    def ordered(self) -> list[NodeView]:
        return sorted(self.nodes.values(), key=lambda node: node.name)

    def links(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(region, region) -> the worst that either side says: connected, rtt_ms, lag_ops, names."""
        known = {node.name: node for node in self.nodes.values()}
        out: dict[tuple[str, str], dict[str, Any]] = {}
        for node in self.up:
            for peer in node.peers:
                other = known.get(peer["node"])
                here, there = node.region, peer["region"]
                if here == there:
                    continue
                pair = (here, there) if here < there else (there, here)
                link = out.setdefault(pair, {"connected": True, "rtt_ms": None, "lag_ops": 0})
                link["connected"] &= bool(peer["connected"]) and (other is None or other.up)
                link["lag_ops"] = max(link["lag_ops"], peer["lag_ops"])
                if peer["rtt_ms"] is not None:
                    link["rtt_ms"] = max(link["rtt_ms"] or 0.0, peer["rtt_ms"])
        return out

    async def why(self, key: str) -> dict[str, Any]:
        """Why a key holds what it holds, asked of the first node that answers. Raises NovaError."""
        from nova.client import key_target

        nodes = self.up or list(self.nodes.values())
        return await nodes[0].client.get("/v1/why/" + key_target(key).removeprefix("/v1/keys/"))  # type: ignore[no-any-return]

    async def points(self, key: str) -> list[tuple[NodeView, dict[str, Any]]]:
        """The rollback points of a key, newest first, each with the node that keeps it. Raises NovaError."""
        from nova.client import key_target

        target = "/v1/points/" + key_target(key).removeprefix("/v1/keys/")
        found = [(node, point) for node in self.up for point in (await node.client.get(target))["points"]]
        return sorted(found, key=lambda pair: -pair[1]["time_ms"])

    async def roll_back(self, node: NodeView, key: str, point: str, context: dict[str, int]) -> dict[str, Any]:
        """Bring a key back to a point, as of what `context` knew. Raises NovaError."""
        from nova.client import key_target

        target = "/v1/rollback/" + key_target(key).removeprefix("/v1/keys/")
        body = {"to": point, "context": context, "by": "the dashboard"}
        return await node.client.call("POST", target, body)  # type: ignore[no-any-return]

    async def clock(self, node: NodeView, key: str) -> dict[str, int]:
        """What is known of a key at a node; {} if it holds nothing. Raises NovaError."""
        from nova.client import key_target

        try:
            return (await node.client.get(key_target(key)))["clock"]  # type: ignore[no-any-return]
        except KeyNotFoundError:
            return {}

    async def trail(self, key: str, type_: str | None) -> list[dict[str, Any]]:
        """The newest audit events about a key (of one type), newest first, of the first node that answers."""
        nodes = self.up or list(self.nodes.values())
        events: list[dict[str, Any]] = []
        after: str | None = None
        while True:
            page = await nodes[0].client.get("/v1/audit", resource=key, type=type_, limit=1000, after=after)
            events = [*events, *page["events"]][-TRAIL:]
            after = page["next"]
            if after is None:
                return events[::-1]

    async def decide(self, waits: dict[str, Any], values: dict[str, Any]) -> None:
        """Settle what waits, as it was shown. Raises UsageError if it is something else by now; NovaError."""
        from nova.client import key_target

        nodes = self.up or list(self.nodes.values())
        target = "/v1/decisions/" + key_target(waits["key"]).removeprefix("/v1/keys/")
        body = {"shown": waits["shown"], "values": values, "by": "the dashboard"}
        await nodes[0].client.call("POST", target, body)

    async def ask(self) -> None:
        """One round over all nodes."""
        await asyncio.gather(*(node.ask() for node in self.nodes.values()))
        self._discover()
        for node in self.up:
            with contextlib.suppress(NovaError):
                self.conflicts = await node.client.get("/v1/conflicts", limit=FEED)
                self.waiting = (await node.client.get("/v1/decisions", limit=FEED))["waiting"]
                break
        self.times.append(int(time.time() * 1000))
        for node in self.nodes.values():
            rates = self.rates.setdefault(node.name, deque([0.0] * (len(self.times) - 1), maxlen=HISTORY))
            rates.append(round(node.rate, 1))
        self.lags.append(max((peer["lag_ops"] for node in self.up for peer in node.peers), default=0))
        self.rounds += 1

    def _discover(self) -> None:
        names = {node.name for node in self.nodes.values() if node.status}
        for node in self.up:
            for peer in node.peers:
                http = peer.get("http")
                if not http or peer["node"] in names or len(self.nodes) >= NODES_MAX:
                    continue
                url = f"{node.url.partition('://')[0]}://{http}"
                if url not in self.nodes:
                    self.nodes[url] = NodeView(url, self._token, self._tls)
                    names.add(peer["node"])

    async def _run(self) -> None:
        while True:
            begin = time.monotonic()
            try:
                await self.ask()
            except Exception:  # a node of another version may answer anything; the page goes on with what it has
                log.exception("a round over the nodes failed")
            await asyncio.sleep(max(0.1, POLL_S - (time.monotonic() - begin)))

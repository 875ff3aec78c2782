"""The parts of the page as HTML: pure functions of what the dashboard knows. Whatever came from a node is escaped."""

from __future__ import annotations

import time
from html import escape
from pathlib import Path
from typing import Any, Final

import msgspec

from nova.server.dashboard.view import ClusterView, NodeView
from nova.server.dashboard.world import HEIGHT, WIDTH, land_path, region_place

# Okabe and Ito's palette (2008): told apart with every kind of colour vision.
SERIES: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
VALUE_CHARS_MAX: Final = 160

STYLE: Final = (Path(__file__).parent / "style.css").read_text("utf-8")


def header(view: ClusterView) -> str:
    """Name of the cluster and the one fact that matters most: do all nodes hold the same?"""
    total, up = len(view.nodes), len(view.up)
    cluster = next((node.status.get("cluster", "") for node in view.up), "")
    cut = [pair for pair, link in view.links().items() if not link["connected"]]
    if up < total:
        names = ", ".join(node.name for node in view.ordered() if not node.up)
        state, text = "bad", f"{names} does not answer" if up else "no node answers"
    elif cut:
        state, text = "bad", f"{len(cut)} of {len(view.links())} links are cut"
    elif len(view.digests) > 1:
        state, text = "", f"converging: {len(view.digests)} different states"
    elif up:
        state, text = "", f"all {up} nodes hold the same" if up > 1 else "one node, healthy"
    else:
        state, text = "bad", "no node yet"
    return (
        f'<div class="head"><b class="logo">nova</b><span class="dim">cluster {escape(cluster or "-")}</span>'
        f'<span class="pill {state}" data-testid="state"><i></i>{escape(text)}</span></div>'
    )


def tiles(view: ClusterView) -> str:
    """The cluster in numbers."""
    up = view.up
    rate = sum(node.rate for node in up)
    lag = view.lags[-1] if view.lags else 0
    values = (
        ("keys", f"{max((node.status['keys'] for node in up), default=0):,}"),
        ("writes/s", f"{rate:,.0f}"),
        ("nodes up", f"{len(up)} of {len(view.nodes)}"),
        ("greatest lag", f"{lag:,} writes"),
        ("conflicts settled", f"{view.conflicts['total']:,}"),
        ("wait for somebody", f"{max((node.status['pending'] for node in up), default=0):,}"),
    )
    return '<div class="card"><div class="tiles">' + "".join(
        f'<div class="tile num"><b>{value}</b><span class="dim">{name}</span></div>' for name, value in values
    ) + "</div></div>"  # fmt: skip


VIEW_BOX: Final = f"0 2 {WIDTH:.0f} {HEIGHT - 6:.0f}"


def land() -> str:
    """The map under `world`; it never changes."""
    return f'<svg class="world" viewBox="{VIEW_BOX}" aria-hidden="true"><path class="land" d="{land_path()}"/></svg>'


def world(view: ClusterView) -> str:
    """Regions and the links between them, to lie on the map."""
    regions = sorted({node.region for node in view.nodes.values() if node.region})
    places = {region: region_place(region, number) for number, region in enumerate(regions)}
    parts = [f'<svg class="world" viewBox="{VIEW_BOX}" role="img" aria-label="Regions and links">']
    labels: list[str] = []
    for number, ((here, there), link) in enumerate(sorted(view.links().items())):
        if here not in places or there not in places:
            continue
        (x1, y1), (x2, y2) = sorted((places[here], places[there]))
        lift = 0.16 * ((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5 * (1 if number % 2 == 0 else -0.35)
        mx, my = (x1 + x2) / 2, (y1 + y2) / 2 - lift * 1.6
        curve = f"M{x1:.1f} {y1:.1f}Q{mx:.1f} {my:.1f} {x2:.1f} {y2:.1f}"
        state = "" if link["connected"] else " cut"
        parts.append(f'<path class="link{state}" d="{curve}"/>')
        if link["connected"]:
            parts.append(f'<path class="link flow" d="{curve}"/>')
        lx, ly = (x1 + 2 * mx + x2) / 4, (y1 + 2 * my + y2) / 4
        text = f"{link['rtt_ms']:.0f} ms" if link["connected"] and link["rtt_ms"] is not None else ""
        text = text if link["connected"] else "cut"
        behind = f" · {link['lag_ops']:,} behind" if link["lag_ops"] else ""
        labels.append(
            f'<text class="sub on num" x="{lx:.1f}" y="{ly - 6:.1f}" text-anchor="middle">{text}{behind}</text>'
        )
    for region, (x, y) in places.items():
        nodes = [node for node in view.ordered() if node.region == region]
        up = sum(node.up for node in nodes)
        colour = "var(--good)" if up == len(nodes) else "var(--bad)"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="13" fill="{colour}" opacity=".18"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}" stroke="var(--card)" stroke-width="2"/>')
        rate = sum(node.rate for node in nodes)
        labels.append(f'<text x="{x:.1f}" y="{y + 28:.1f}" text-anchor="middle">{escape(region)}</text>')
        said = f"{rate:,.0f} writes/s" if up else "does not answer"
        labels.append(f'<text class="sub num" x="{x:.1f}" y="{y + 43:.1f}" text-anchor="middle">{said}</text>')
    return "".join(parts + labels) + "</svg>"


def nodes(view: ClusterView) -> str:
    """One block a node."""
    common = _most_common([node.status["digest"] for node in view.up])
    out = ['<div class="card"><h2>Nodes</h2>']
    for number, node in enumerate(view.ordered()):
        out.append(f'<div class="node" data-testid="node" style="--c:{SERIES[number % len(SERIES)]}">')
        out.append(_node(node, common))
        out.append("</div>")
    return "".join(out) + "</div>"


def _node(node: NodeView, common: str) -> str:
    status = node.status
    if not node.up:
        return (
            f'<div class="row"><span class="name">{escape(node.name)}</span><span class="chip bad">down</span></div>'
            f'<div class="dim">{escape(node.error)}</div>'
        )
    same = status["digest"] == common
    return (
        f'<div class="row"><span class="name">{escape(node.name)}</span>'
        f'<span class="chip">{escape(status["region"])}</span></div>'
        f'<div class="row num"><span>{status["keys"]:,} keys</span><span>{node.rate:,.0f} writes/s</span>'
        f'<span class="dim">{status["rss_bytes"] / 1048576:,.0f} MB</span>'
        f'<span class="dim">up {_span(status["uptime_s"])}</span></div>'
        f'<div class="row"><span class="mono {"" if same else "bad"}" title="digest of the whole state">'
        f"{escape(status['digest'][:16])}{'' if same else ' differs'}</span>"
        f'<span class="dim num">{status["peers"]} peers · {status["conflicts"]:,} conflicts</span></div>'
        + _certificate(status.get("tls"))
    )


EXPIRES_SOON_S: Final = 14 * 86_400


def _certificate(tls: dict[str, Any] | None) -> str:
    """Until when a node's certificate and its authority live."""
    if tls is None:
        return '<div class="row dim" data-testid="tls"><span>not encrypted</span></div>'
    soonest = min(tls["expires_s"], tls["ca_expires_s"])
    state = "bad" if soonest - time.time() < EXPIRES_SOON_S else "dim"
    days = [time.strftime("%Y-%m-%d", time.gmtime(tls[name])) for name in ("expires_s", "ca_expires_s")]
    failed = sum(tls["failures"].values())
    return (
        f'<div class="row {state} num" data-testid="tls"><span>TLS 1.3 · certificate until {days[0]}, authority until '
        f"{days[1]}</span><span>{f'{failed:,} handshakes failed' if failed else ''}</span></div>"
    )


def links(view: ClusterView) -> str:
    """Every directed link as its sender sees it."""
    rows = []
    for node in view.ordered():
        for peer in node.peers if node.up else ():
            connected = peer["connected"] and peer["state"] == "alive"
            state = peer["state"] if peer["connected"] else f"cut ({peer['state']})"
            rtt = f"{peer['rtt_ms']:.1f} ms" if peer["rtt_ms"] is not None and peer["connected"] else "-"
            cover = "TLS 1.3" if peer.get("encrypted") else "plain" if peer["connected"] else "-"
            rate = node.link_bps.get(peer["node"])
            rows.append(
                f"<tr><td>{escape(node.name)} → {escape(peer['node'])}</td>"
                f'<td class="{"good" if connected else "bad"}">{escape(state)}</td><td>{cover}</td><td>{rtt}</td>'
                f"<td>{peer['lag_ops']:,}</td><td>{_bytes(peer['sent_bytes'])}</td>"
                f"<td>{'-' if rate is None else _bytes(round(rate / 8)) + '/s'}</td>"
                f"<td>{_bytes(peer.get('queue_bytes', 0))}</td></tr>"
            )
    body = "".join(rows) or '<tr><td colspan="8" class="dim">no links</td></tr>'
    return (
        '<div class="card"><h2>Links</h2><table class="links num"><tr><th>link</th><th>state</th><th>cover</th>'
        f"<th>round trip</th><th>lag</th><th>sent</th><th>rate</th><th>queued</th></tr>{body}</table></div>"
    )


def group(view: ClusterView) -> str:
    """Who orders the strong keys: leader, term, the chain of epochs, how far each member is. Empty without a group."""
    told = view.group()
    if told is None:
        return ""
    view_name = "view" if told["protocol"] == "pbft" else "term"
    leader = told["leader"] or ("all alike" if told["protocol"] == "epaxos" else "nobody leads")
    tiles = (
        ("leader", leader),
        (view_name, f"{told['term']:,}"),
        ("epoch", f"{told['epoch']} {told['protocol']}"),
        ("strong keys", f"{told['keys']:,}"),
        ("revision", f"{told['revision']:,}"),
    )
    rows = []
    for member in told["members"]:
        state = "leader" if member["leads"] else member["role"]
        reached = "yes" if member["connected"] else "no"
        behind = "-" if member["lag"] is None else f"{member['lag']:,}"
        applied = "-" if member["applied"] is None else f"{member['applied']:,}"
        rows.append(
            f'<tr data-testid="member"><td>{escape(member["node"])}</td><td>{escape(state)}</td>'
            f'<td class="{"good" if member["connected"] else "bad"}">{reached}</td><td>{behind}</td>'
            f"<td>{applied}</td></tr>"
        )
    chain = " → ".join(
        f'<span class="chip" title="from position {link["start"]}, {escape(", ".join(link["members"]))}">'
        f"{link['number']} {escape(link['protocol'])}</span>"
        for link in told["epochs"]
    )
    failed = f'<div class="bad">{escape(told["failure"])}</div>' if told["failure"] else ""
    return (
        '<div class="card" data-testid="group"><h2>Strong keys</h2><div class="tiles">'
        + "".join(
            f'<div class="tile num"><b>{escape(value)}</b><span class="dim">{name}</span></div>'
            for name, value in tiles
        )
        + f'</div>{failed}<div class="chain">epochs: {chain}</div><table class="links num"><tr><th>member</th>'
        f"<th>role</th><th>connected</th><th>entries behind</th><th>applied</th></tr>{''.join(rows)}</table></div>"
    )


def regions(view: ClusterView) -> str:
    """Who owns the hybrid keys, and which nodes lack some of them. Empty where there are none."""
    rows = []
    for owner, held in view.regions().items():
        behind = [
            f"{node} {held['revision'] - revision:,}"
            for node, revision in held["here"].items()
            if revision < held["revision"]
        ]
        rows.append(
            f'<tr data-testid="region"><td>{escape(owner)}</td><td>{escape(", ".join(held["members"]))}</td>'
            f"<td>{held['keys']:,}</td><td>{held['revision']:,}</td>"
            f"<td>{escape(', '.join(behind)) or 'nobody'}</td></tr>"
        )
    if not rows:
        return ""
    return (
        '<div class="card" data-testid="regions"><h2>Hybrid keys</h2><table class="links num"><tr><th>owner</th>'
        f"<th>members</th><th>keys</th><th>changes</th><th>changes behind</th></tr>{''.join(rows)}</table></div>"
    )


def statistics(view: ClusterView) -> str:
    """Conflicts by type and by strategy."""
    by_type, by_strategy = view.conflicts["by_type"], view.conflicts["by_strategy"]
    return (
        f'<div class="card"><h2>Conflicts by type</h2>{_bars(by_type)}<h2 style="margin-top:18px">Settled by</h2>'
        f"{_bars(by_strategy)}</div>"
    )


def _bars(counts: dict[str, int]) -> str:
    if not counts:
        return '<div class="dim">none so far</div>'
    most = max(counts.values())
    return '<div class="bars">' + "".join(
        f'<div class="bar"><span>{escape(name.replace("_", " "))}</span>'
        f'<span class="track"><i style="width:{100 * count / most:.0f}%"></i></span>'
        f'<span class="num">{count:,}</span></div>'
        for name, count in sorted(counts.items(), key=lambda item: -item[1])
    ) + "</div>"  # fmt: skip


def feed(view: ClusterView) -> str:
    """The newest conflicts: both sides, what was settled, and why."""
    items = [_conflict(conflict) for conflict in view.conflicts["conflicts"]]
    body = "".join(items) or '<div class="dim">No writers have met so far. Conflicts appear here with both sides.</div>'
    return f'<div class="card"><h2>Conflict feed</h2><div class="feed">{body}</div></div>'


def _conflict(conflict: dict[str, Any]) -> str:
    resolution = conflict.get("resolution") or {}
    gone = {(item["path"], _text(item["value"]), item["origin"]) for item in resolution.get("discarded", ())}
    sides = []
    for version in conflict["versions"]:
        lines = []
        for path, value in version["values"].items():
            text = _text(value)
            style = ' class="gone"' if (path, text, version["origin"]) in gone else ""
            lines.append(f'<div class="mono">{escape(path)} <span{style}>{escape(text)}</span></div>')
        sides.append(
            f'<div class="side"><small>{escape(version["origin"])}</small>{"".join(lines) or "removed it"}</div>'
        )
    settled = "".join(
        f'<div class="mono">{escape(path)} <b>{escape(_text(value))}</b></div>'
        for path, value in resolution.get("values", {}).items()
    )
    strategy = str(resolution.get("strategy", "-")).replace("_", " ")
    title = "waits for somebody" if conflict["status"] == "pending" else f"settled by {strategy}"
    sides.append(f'<div class="side settled"><small>{escape(title)}</small>{settled or "both kept"}</div>')
    because = "".join(f"<li>{escape(_short(line, 320))}</li>" for line in resolution.get("explanation", ())[:3])
    chips = "".join(f'<span class="chip">{escape(kind.replace("_", " "))}</span>' for kind in conflict["types"])
    when = time.strftime("%H:%M:%S", time.localtime(conflict["detected_ms"] / 1000))
    return (
        f'<div class="conflict {escape(conflict["status"])}" data-testid="conflict"><div class="top">'
        f'<b>{escape(conflict["key"])}</b>{chips}<span class="chip">{escape(conflict["severity"])}</span>'
        f'<span class="when dim num">{when}</span></div><div class="sides">{"".join(sides)}</div>'
        f'<div class="because"><ul>{because}</ul></div></div>'
    )


def choice(candidate: dict[str, Any]) -> str:
    """One value to decide for, in words; no markup."""
    return f"{_text(candidate['value'])} of {candidate['origin']}"


def _text(value: Any) -> str:
    if value is None:
        return "removed"
    return _short(msgspec.json.encode(value, order="sorted").decode(), VALUE_CHARS_MAX)


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _most_common(values: list[str]) -> str:
    return max(sorted(set(values)), key=values.count, default="")


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError

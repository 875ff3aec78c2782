# ruff: noqa: E501
"""The node's own status page: one answer, nothing loaded from elsewhere, a client of the public API."""

from __future__ import annotations

import base64
import hashlib

_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#5b6570;--back:#fbfbfa;--card:#fff;--line:#d9dde1;--good:#0072b2;--bad:#d55e00}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--dim:#9aa4ae;--back:#14171a;--card:#1d2125;--line:#343a40;--good:#56b4e9;--bad:#e69f00}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
main{max-width:62rem;margin:0 auto;padding:1.5rem}h1{font-size:1.3rem;margin:0 0 .2rem}h2{font-size:1rem;margin:1.6rem 0 .5rem}
.dim{color:var(--dim)}.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.6rem;margin-top:1rem}
.cards div{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem}
.cards b{display:block;font-size:1.25rem;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;background:var(--card);border:1px solid var(--line)}
th,td{text-align:left;padding:.35rem .6rem;border-top:1px solid var(--line);font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
th{font-weight:600;border-top:0}.scroll{overflow-x:auto}input{font:inherit;padding:.3rem .5rem;width:20rem;max-width:100%}
"""

_SCRIPT = """
"use strict";
const at = id => document.getElementById(id);
const count = n => n == null ? "-" : Number(n).toLocaleString("en");
const size = n => n == null ? "-" : n < 1048576 ? (n / 1024).toFixed(0) + " KiB" : (n / 1048576).toFixed(1) + " MiB";
let token = sessionStorage.getItem("nova-token") || "";
let last = null;

async function ask(path) {
  const answer = await fetch(path, token ? {headers: {Authorization: "Bearer " + token}} : {});
  if (answer.status === 401) { at("login").hidden = false; throw new Error("this node asks for its token"); }
  if (!answer.ok) throw new Error(path + " answered " + answer.status);
  at("login").hidden = true;
  return answer.json();
}

function cells(row, values) {
  for (const value of values) row.insertCell().textContent = value;
}

function fill(id, rows, empty) {
  const body = at(id);
  body.replaceChildren();
  if (!rows.length) { const cell = body.insertRow().insertCell(); cell.colSpan = 9; cell.className = "dim"; cell.textContent = empty; }
  for (const row of rows) cells(body.insertRow(), row);
}

async function refresh() {
  try {
    const [status, peers, feed] = await Promise.all([ask("/v1/status"), ask("/v1/peers"), ask("/v1/conflicts?limit=10")]);
    document.title = status.name + " - nova";
    at("name").textContent = status.name;
    at("where").textContent = status.region + " - cluster " + status.cluster + " - version " + status.version;
    at("health").textContent = status.healthy ? "healthy" : "not healthy";
    at("health").className = status.healthy ? "good" : "bad";
    const now = performance.now();
    const rate = last ? (status.writes_total - last.writes) / ((now - last.now) / 1000) : 0;
    last = {now, writes: status.writes_total};
    at("keys").textContent = count(status.keys);
    at("peers").textContent = count(status.peers);
    at("rate").textContent = count(Math.max(0, Math.round(rate)));
    at("conflicts").textContent = count(status.conflicts);
    at("revision").textContent = count(status.revision);
    at("memory").textContent = size(status.rss_bytes);
    at("digest").textContent = String(status.digest).slice(0, 16);
    fill("peer-rows", peers.peers.map(p => [p.node, p.region, p.state, p.connected ? "yes" : "no",
      p.rtt_ms == null ? "-" : p.rtt_ms.toFixed(1) + " ms", count(p.lag_ops), size(p.sent_bytes), size(p.received_bytes)]), "no peers");
    const group = status.strong_keys == null ? null : await ask("/v1/consensus");
    at("group").hidden = !group;
    if (group) {
      at("leader").textContent = group.leader || (group.protocol === "epaxos" ? "all alike" : "nobody leads");
      at("leader").className = group.failure || (!group.leader && group.protocol !== "epaxos") ? "bad" : "";
      at("term").textContent = count(group.term);
      at("strong").textContent = count(group.keys);
      at("epochs").textContent = group.epochs.map(e => e.number + " " + e.protocol).join(" \u2192 ");
      fill("member-rows", group.members.map(m => [m.node, m.leads ? "leader" : m.role, m.connected ? "yes" : "no",
        count(m.lag), m.address]), "no members");
    }
    at("hybrid").hidden = !status.hybrid;
    if (status.hybrid) {
      at("hybrid-leader").textContent = status.hybrid.leader || "nobody leads";
      at("hybrid-leader").className = status.hybrid.failure || !status.hybrid.leader ? "bad" : "";
      fill("region-rows", Object.entries(status.hybrid.regions).map(([region, held]) => [region, held.members.join(", "),
        count(held.keys), count(held.revision)]), "no regions");
    }
    fill("conflict-rows", feed.conflicts.map(c => [new Date(c.detected_ms).toLocaleTimeString(), c.key, c.types.join(", "),
      c.resolution ? c.resolution.strategy : "-", c.status]), "no conflicts");
    at("error").textContent = "";
  } catch (error) {
    at("error").textContent = error.message;
  }
  setTimeout(refresh, document.hidden ? 10000 : 2000);
}

at("login").addEventListener("submit", event => {
  event.preventDefault();
  token = at("token").value.trim();
  sessionStorage.setItem("nova-token", token);
});
refresh();
"""

PAGE = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1"><title>nova</title>
<link rel="icon" href="data:,"><style>{_STYLE}</style></head>
<body><main>
<h1><span id="name">nova</span> <small id="health" class="dim">...</small></h1><div id="where" class="dim"></div>
<p id="error" class="bad" role="status"></p>
<form id="login" hidden><label>Token <input id="token" type="password" autocomplete="off"></label> <button>Show</button></form>
<div class="cards">
<div><b id="keys">-</b>keys</div><div><b id="peers">-</b>live peers</div><div><b id="rate">-</b>writes/s</div>
<div><b id="conflicts">-</b>conflicts</div><div><b id="revision">-</b>revision</div><div><b id="memory">-</b>memory</div>
<div><b id="digest">-</b>digest</div></div>
<h2>Peers</h2><div class="scroll"><table><thead><tr><th>node<th>region<th>state<th>connected<th>round trip<th>lag<th>sent<th>received</tr></thead>
<tbody id="peer-rows"></tbody></table></div>
<section id="group" hidden><h2>Strong keys</h2><div class="cards"><div><b id="leader">-</b>leader</div><div><b id="term">-</b>term</div>
<div><b id="strong">-</b>strong keys</div></div><p>Epochs: <span id="epochs"></span></p>
<div class="scroll"><table><thead><tr><th>member<th>role<th>connected<th>entries behind<th>address</tr></thead>
<tbody id="member-rows"></tbody></table></div></section>
<section id="hybrid" hidden><h2>Hybrid keys</h2><div class="cards"><div><b id="hybrid-leader">-</b>leader of this region</div></div>
<div class="scroll"><table><thead><tr><th>owner<th>members<th>keys here<th>changes here</tr></thead>
<tbody id="region-rows"></tbody></table></div></section>
<h2>Latest conflicts</h2><div class="scroll"><table><thead><tr><th>time<th>key<th>types<th>strategy<th>status</tr></thead>
<tbody id="conflict-rows"></tbody></table></div>
<p class="dim">API: <a href="/openapi.json">/openapi.json</a>, metrics: <a href="/metrics">/metrics</a>. For maps, charts and history: nova dashboard</p>
</main><script>{_SCRIPT}</script></body></html>
""".encode()


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE_POLICY = (
    f"default-src 'none'; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: this style, this script, this node, nothing else."""

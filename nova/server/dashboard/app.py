"""The page: NiceGUI brings the parts to the browser and keeps them fresh. The only importer of NiceGUI."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any, Final

from nicegui import app, ui

from nova.conflict.audit import when
from nova.errors import NovaError
from nova.server.dashboard import render
from nova.server.dashboard.view import POLL_S, ClusterView, NodeView

POINTS_SHOWN: Final = 5


class Part:
    """A piece of HTML that is sent again only when it changed."""

    def __init__(self, view: ClusterView, make: Callable[[ClusterView], str], span: str) -> None:
        self._view, self._make = view, make
        self._text = make(view)
        self._element = ui.html(self._text, sanitize=False).classes(span)

    def refresh(self) -> None:
        text = self._make(self._view)
        if text != self._text:
            self._text = text
            self._element.set_content(text)


def serve(urls: list[str], *, host: str, port: int, token: str | None, tls: ssl.SSLContext | None = None) -> None:
    """Run the dashboard until it is told to end. Blocks.

    tls  for nodes with https://
    """
    view = ClusterView(urls, token, tls)

    async def begin() -> None:
        await view.ask()  # so that the first page is a filled one
        view.start()

    app.on_startup(begin)
    app.on_shutdown(view.stop)

    @ui.page("/", title="nova", response_timeout=10)
    def page() -> None:
        _page(view)

    ui.run(
        host=host, port=port, title="nova", favicon=_ICON, dark=None, reload=False, show=False,
        show_welcome_message=False, uvicorn_logging_level="warning", binding_refresh_interval=None,
    )  # fmt: skip


_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="15" fill="#0072b2"/>'
    '<path d="M16 5l2.6 8.4L27 16l-8.4 2.6L16 27l-2.6-8.4L5 16l8.4-2.6z" fill="#fff"/></svg>'
)


def _page(view: ClusterView) -> None:
    ui.add_css(render.STYLE)
    dark = ui.dark_mode(value=None)
    parts: list[Part] = []
    with ui.element("main").classes("wrap"):
        with ui.element("div").classes("s12").style("display:flex;align-items:center;justify-content:space-between"):
            parts.append(Part(view, render.header, ""))
            ui.toggle({None: "auto", False: "light", True: "dark"}, value=None).props(
                "dense no-caps unelevated size=sm toggle-color=primary aria-label='Colours'"
            ).bind_value_to(dark, "value")
        parts.append(Part(view, render.tiles, "s12"))
        with ui.element("div").classes("s8"), ui.element("div").classes("card"):
            ui.html("<h2>Regions</h2>", sanitize=False)
            with ui.element("div").classes("map"):
                ui.html(render.land(), sanitize=False)
                parts.append(Part(view, render.world, "over"))
        parts.append(Part(view, render.nodes, "s4"))
        with ui.element("div").classes("s6"), ui.element("div").classes("card"):
            ui.html("<h2>Writes per second</h2>", sanitize=False)
            rates = ui.echart(_rates(view)).style("height:220px;width:100%")
        parts.append(Part(view, render.links, "s6"))
        parts.append(Part(view, render.group, "s12"))
        parts.append(Part(view, render.regions, "s12"))
        waiting = _Waiting(view)
        parts.append(Part(view, render.feed, "s8"))
        with ui.element("div").classes("s4").style("display:grid;gap:14px;align-content:start"):
            parts.append(Part(view, render.statistics, ""))
            _Story(view)
    shown = view.rounds

    def refresh() -> None:
        nonlocal shown
        if view.rounds == shown:
            return
        shown = view.rounds
        for part in parts:
            part.refresh()
        waiting.refresh()
        fresh = _rates(view)
        rates.options["series"] = fresh["series"]
        rates.options["legend"] = fresh["legend"]
        rates.update()

    ui.timer(POLL_S / 2, refresh)


class _Waiting:
    """What waits for somebody: its candidates side by side, to choose from. Nothing is shown while nothing waits."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._shown: list[str] = []
        self._card = ui.element("div").classes("card s12 waiting")
        self.refresh()

    def refresh(self) -> None:
        waits = self._view.waiting
        shown = [f"{each['shown']} {each['vote']}" for each in waits]
        self._card.set_visibility(bool(waits))
        if shown == self._shown:
            return  # what is being chosen stays as it is
        self._shown = shown
        self._card.clear()
        with self._card:
            ui.html("<h2>Waits for somebody</h2>", sanitize=False)
            for each in waits:
                self._one(each)

    def _one(self, waits: dict[str, Any]) -> None:
        paths: dict[str, list[dict[str, Any]]] = {}
        for candidate in waits["candidates"]:
            paths.setdefault(candidate["path"], []).append(candidate)
        chosen: dict[str, Any] = {}

        async def decide() -> None:
            values = {path: paths[path][radio.value]["value"] for path, radio in chosen.items()}
            try:
                await self._view.decide(waits, values)
            except NovaError as error:
                ui.notify(str(error), type="negative", multi_line=True)
            else:
                ui.notify(f"{waits['key']} is decided", type="positive")

        with ui.element("div").classes("conflict pending").props("data-testid=waiting"):
            with ui.element("div").classes("top"):
                ui.label(waits["key"]).classes("name")
                ui.label(waits["reason"]).classes("dim")
            for path, candidates in sorted(paths.items()):
                with ui.row().classes("items-center"):
                    ui.label(path or "value").classes("mono")
                    if path in waits["vote"]:
                        vote = waits["vote"][path]
                        ui.label(f"{len(vote['ballots'])} of {len(vote['voters'])} voted").classes("dim")
                    options = {i: render.choice(candidate) for i, candidate in enumerate(candidates)}
                    kept = next(
                        (i for i, one in enumerate(candidates) if one["value"] == waits["settled"].get(path)), 0
                    )
                    chosen[path] = ui.radio(options, value=kept).props("inline dense")
            if paths:
                ui.button("Decide", on_click=decide).props("unelevated no-caps dense")
            else:
                ui.label("Change one of the keys that claim it.").classes("dim")


class _Story:
    """Ask why a key holds what it holds, read its audit trail, and bring it back to a point."""

    TYPES: Final = ("detect", "resolve", "vote", "decision", "escalate", "point", "rollback", "fail")

    def __init__(self, view: ClusterView) -> None:
        self._view = view
        self._key = ""
        with ui.element("div").classes("card why"):
            ui.html("<h2>Why does a key hold what it holds?</h2>", sanitize=False)
            with ui.row().classes("w-full items-center no-wrap"):
                self._field = ui.input(placeholder="vm/vm-000001").props("dense outlined aria-label=Key").classes("col")
                ui.button("Why", on_click=self._ask).props("unelevated no-caps")
            self._field.on("keydown.enter", self._ask)
            self._answer = ui.element("div")

    async def _ask(self) -> None:
        self._key = self._field.value.strip()
        if not self._key:
            return
        try:
            text = (await self._view.why(self._key))["text"]
            points = await self._view.points(self._key)
            clocks = {node.url: await self._view.clock(node, self._key) for node, _ in points}
        except NovaError as error:
            text, points, clocks = str(error), [], {}
        self._answer.clear()
        with self._answer:
            with ui.element("pre"):
                ui.label(text)
            for node, point in points[:POINTS_SHOWN]:
                self._point(node, point, clocks[node.url])
            self._trail()

    def _point(self, node: NodeView, point: dict[str, Any], context: dict[str, int]) -> None:
        async def back() -> None:
            try:
                done = await self._view.roll_back(node, self._key, point["id"], context)
            except NovaError as error:
                ui.notify(str(error), type="negative", multi_line=True)
                return
            kept = f"; {len(done['kept'])} newer writes stay" if done["kept"] else ""
            ui.notify(f"{self._key} is back at {point['id']}{kept}", type="positive")
            await self._ask()

        with ui.row().classes("items-center").props("data-testid=point"):
            ui.label(f"{when(point['time_ms'])} {point['note'] or point['id']}").classes("mono")
            ui.label(f"at {node.name}").classes("dim")
            ui.button("Roll back", on_click=back).props("flat no-caps dense")

    def _trail(self) -> None:
        events = ui.element("div").props("data-testid=trail")

        async def show() -> None:
            try:
                found = await self._view.trail(self._key, chosen.value)
            except NovaError as error:
                ui.notify(str(error), type="negative", multi_line=True)
                return
            events.clear()
            with events:
                for event in found:
                    words = f"{event['seq']} {when(event['time_ms'])} {event['type']} {event['conflict_id'][:8]}"
                    ui.label(words).classes("mono")
                if not found:
                    ui.label("no events").classes("dim")

        with ui.row().classes("items-center"):
            chosen = ui.select({None: "all events", **{name: name for name in self.TYPES}}, value=None).props(
                "dense outlined aria-label='Type of event'"
            )
            ui.button("Audit trail", on_click=show).props("flat no-caps dense")
        events.move(target_index=-1)


def _rates(view: ClusterView) -> dict[str, Any]:
    """Options of the throughput chart."""
    grey = "#8593a1"
    names = [node.name for node in view.ordered()]
    times = list(view.times)
    return {
        "color": list(render.SERIES),
        "animation": False,
        "aria": {"enabled": True},
        "textStyle": {"fontFamily": "system-ui, sans-serif"},
        "grid": {"left": 8, "right": 12, "top": 34, "bottom": 4, "containLabel": True},
        "legend": {"data": names, "top": 0, "left": 0, "icon": "roundRect", "textStyle": {"color": grey}},
        "tooltip": {"trigger": "axis"},
        "xAxis": {
            "type": "time",
            "axisLabel": {"color": grey, "hideOverlap": True, "formatter": "{HH}:{mm}:{ss}"},
            "axisLine": {"lineStyle": {"color": grey}},
            "splitLine": {"show": False},
        },
        "yAxis": {
            "type": "value",
            "min": 0,
            "minInterval": 1,
            "axisLabel": {"color": grey},
            "splitLine": {"lineStyle": {"color": grey, "opacity": 0.2}},
        },
        "series": [
            {
                "name": name,
                "type": "line",
                "showSymbol": False,
                "lineStyle": {"width": 2},
                "areaStyle": {"opacity": 0.08},
                "data": [list(pair) for pair in zip(times, view.rates.get(name, ()), strict=False)],
            }
            for name in names
        ],
    }

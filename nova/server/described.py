"""How a route describes itself in OpenAPI."""

from __future__ import annotations

from typing import Any

from litestar.openapi.datastructures import ResponseSpec

from nova.server.models import Problem


def described(summary: str, model: Any, *errors: int, status: int = 200) -> dict[str, Any]:
    """Keyword arguments that describe a route in OpenAPI."""
    known = {
        400: "The request is wrong; the error says what to mend.",
        404: "There is nothing under this name.",
        409: "The context is stale; both versions are in the answer.",
        410: "The changes since then are forgotten; read the keys again.",
        413: "Over a limit.",
        503: "Not now; see Retry-After.",
    }
    responses = {status: ResponseSpec(model, description=summary, generate_examples=False)} if model else {}
    responses |= {error: ResponseSpec(Problem, description=known[error], generate_examples=False) for error in errors}
    return {"summary": summary, "responses": responses, "status_code": status, "raises": []}


__all__ = ["described"]

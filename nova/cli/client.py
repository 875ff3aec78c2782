"""A small client of the HTTP API, on the standard library."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from nova.cli.secured import context
from nova.errors import KeyNotFoundError, LimitError, NovaError, StaleContextError, UnavailableError, UsageError

SILENCE_SECONDS_MAX = 30.0
ERRORS: dict[int, type[NovaError]] = {400: UsageError, 404: KeyNotFoundError, 413: LimitError, 503: UnavailableError}


class Client:
    """One node, by URL.

    Answers are parsed JSON. Errors are those of nova.errors: UsageError for a refused request, KeyNotFoundError,
    StaleContextError (`current` is the answer with both versions), UnavailableError for a node that cannot be
    reached or cannot answer now, NovaError for the rest.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout: float = SILENCE_SECONDS_MAX) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise UsageError(f"--node {url} is no URL of a node; write it like http://127.0.0.1:8420")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._connection: http.client.HTTPConnection
        if parts.scheme == "http":
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=timeout)
        else:
            self._connection = http.client.HTTPSConnection(parts.hostname, port, timeout=timeout, context=context())
        self._headers = {"Accept": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def get(self, path: str, **query: Any) -> Any:
        """GET; query values that are None are left out."""
        return self._json("GET", _with_query(path, query), None)

    def put(self, path: str, body: Any) -> Any:
        return self._json("PUT", path, body)

    def post(self, path: str, body: Any = None) -> Any:
        return self._json("POST", path, body)

    def delete(self, path: str, **query: Any) -> Any:
        return self._json("DELETE", _with_query(path, query), None)

    def watch(self, prefix: str, since: int | None, kind: str | None = None) -> Iterator[dict[str, Any]]:
        """Changes as they come; ends with UnavailableError when the node does."""
        response = self._open(
            "GET", _with_query("/v1/watch", {"prefix": prefix or None, "since": since, "class": kind}), None
        )
        event = data = b""
        try:
            while line := response.readline():
                name, _, value = line.rstrip(b"\r\n").partition(b": ")
                if name == b"event":
                    event = value
                elif name == b"data":
                    data = value
                elif not line.strip() and data:
                    if event == b"error":
                        raise UnavailableError(msgspec.json.decode(data)["error"])
                    yield msgspec.json.decode(data)
                    event = data = b""
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                f"lost the node at {self.url} ({_reason(error)}); watch again with --since"
            ) from None
        raise UnavailableError(f"the node at {self.url} ended the feed; watch again with --since")

    def lines(self, path: str) -> Iterator[bytes]:
        """The lines of an answer that comes in pieces. Raises UnavailableError if it breaks off."""
        response = self._open("GET", path, None)
        try:
            while line := response.readline():
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"lost the node at {self.url} ({_reason(error)}); ask again") from None

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _json(self, method: str, target: str, body: Any) -> Any:
        response = self._open(method, target, body)
        try:
            return msgspec.json.decode(response.read())
        except (OSError, http.client.HTTPException, msgspec.DecodeError):
            raise NovaError(f"{self.url} does not answer like a node of nova; --node names another one") from None

    def _open(self, method: str, target: str, body: Any) -> http.client.HTTPResponse:
        data = None if body is None else msgspec.json.encode(body)
        headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
        try:
            self._connection.request(method, target, data, headers)
            response = self._connection.getresponse()
            if response.status < 400:
                return response
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                f"cannot reach a node at {self.url} ({_reason(error)}); start one with nova serve, "
                "or name it with --node URL or NOVA_NODE"
            ) from None
        try:
            problem = msgspec.json.decode(answer)
            message = str(problem["error"])
        except (msgspec.DecodeError, KeyError, TypeError):
            raise NovaError(f"{self.url} answered {response.status} and no word of nova; is it a node?") from None
        if response.status == 409:
            raise StaleContextError(message, problem)
        raise ERRORS.get(response.status, NovaError)(message)


def key_path(route: str, key: str) -> str:
    """/v1/keys + a key, with every byte that a path cannot hold escaped."""
    return f"{route}/{quote(key, safe='/')}"


def _with_query(path: str, query: dict[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        from nova.transport.tls import explain_http

        return explain_http(error)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__

"""Errors, grouped by what the caller should do about them."""

from __future__ import annotations


class NovaError(Exception):
    """Base of every error that nova raises on purpose. `code` is stable: HTTP answers and scripts use it."""

    code = "error"


class UsageError(NovaError, ValueError):
    """The call is wrong: fix the call."""

    code = "bad_request"


class LimitError(UsageError):
    """A size or count is over its limit."""

    code = "limit"


class ConfigError(UsageError):
    """A configuration, flag or environment variable is wrong."""

    code = "config"


class KeyNotFoundError(UsageError, KeyError):
    """No value lives under this key."""

    code = "not_found"

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class StaleContextError(UsageError):
    """A conditional write was made with another clock than the present one; `current` is what is there now."""

    code = "conflict"

    def __init__(self, message: str, current: object = None) -> None:
        super().__init__(message)
        self.current = current


class FenceRequiredError(UsageError):
    """A second primary would come to be: fence the other side, and confirm that it is, first."""

    code = "fence_required"


class PeerError(NovaError):
    """The remote broke the protocol: drop or fence it."""

    code = "peer"


class UnavailableError(NovaError):
    """Right request, wrong moment: try again after `retry_after_ns`."""

    code = "unavailable"

    def __init__(self, message: str, retry_after_ns: int = 1_000_000_000) -> None:
        super().__init__(message)
        self.retry_after_ns = retry_after_ns


class DeadlineError(UnavailableError, TimeoutError):
    """The time that the caller gave has passed; nothing is lost, the same call goes on where this one ended."""

    code = "deadline"


class CompactedError(UnavailableError):
    """The change feed no longer reaches back that far; `oldest` is the first revision to watch from."""

    code = "compacted"

    def __init__(self, message: str, oldest: int) -> None:
        super().__init__(message)
        self.oldest = oldest


class TransferCancelledError(UnavailableError):
    """A transfer was given up on this side. What is in place stays: the same call again goes on from there."""

    code = "cancelled"


class CorruptionError(NovaError):
    """Bytes or a state that cannot be: stop, never guess."""

    code = "corruption"

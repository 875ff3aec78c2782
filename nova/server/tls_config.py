"""What a node is told of TLS: where its certificate lies, and whom it trusts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from nova.metrics import Registry
from nova.transport.tls import Tls, TlsFiles

if TYPE_CHECKING:
    from nova.server.config import NodeConfig


class TlsTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TLS 1.3 on every port of the node, both sides with certificates; without any of the files: none.

    dir          folder as `nova certs` makes it; the next three are ca.pem, NAME.pem and NAME.key in it
    ca           PEM file with the authorities of the cluster, one or more; nobody else is trusted
    certificate  PEM file with the node's certificate: nova://CLUSTER/REGION/NAME is among its names
    key          PEM file with its private key
    client_ca    PEM file with the authorities of clients: the HTTP API asks for a certificate then
    check_ms     how often files are looked at; SIGHUP does it at once
    warn_days    so long before something expires it is logged, once a day
    """

    dir: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    client_ca: str = ""
    check_ms: int = 10_000
    warn_days: int = 14

    @property
    def on(self) -> bool:
        """Whether it is configured at all."""
        return bool(self.dir or self.ca or self.certificate or self.key or self.client_ca)

    def files(self, name: str) -> TlsFiles:
        """Of the node of this name."""
        of = TlsFiles.in_folder(self.dir, name) if self.dir else TlsFiles("", "", "")
        return TlsFiles(self.ca or of.ca, self.certificate or of.certificate, self.key or of.key, self.client_ca)


def wrong(config: NodeConfig) -> tuple[str, str] | None:
    """What no setting can say alone: the setting to look at, and what is wrong."""
    if not config.tls.on:
        return None
    files = config.tls.files(config.name)
    for name in ("ca", "certificate", "key"):
        file = getattr(files, name)
        if not file:
            return "tls.ca", f"tls.{name} is missing; set tls.ca, tls.certificate and tls.key, or tls.dir"
        if not Path(file).is_file():
            return ("tls.dir" if config.tls.dir and not getattr(config.tls, name) else f"tls.{name}"), (
                f"tls.{name} is {file}, and there is no such file; make it: nova certs issue {config.name} --region "
                f"{config.region}"
            )
    return None


class NodeTls:
    """TLS of one node: its files, looked at from time to time. Raises ConfigError."""

    def __init__(self, config: NodeConfig, registry: Registry) -> None:
        table = config.tls
        self.tls = Tls(
            table.files(config.name),
            cluster=config.cluster,
            name=(config.name, config.region),
            warn_days=table.warn_days,
            metrics=registry,
        )
        self.asks_clients = bool(table.client_ca)
        self._check_s = table.check_ms / 1000
        self._checked_s = time.monotonic()

    def look(self, *, now: bool = False) -> None:
        """Look at the files, if it is time to, or `now`."""
        if now or time.monotonic() - self._checked_s >= self._check_s:
            self._checked_s = time.monotonic()
            self.tls.look()

    def status(self) -> dict[str, Any]:
        """How it stands; `nova.server.models.TlsStatus`."""
        return {
            "certificate": self.tls.name.uri,
            "fingerprint": self.tls.fingerprint,
            "expires_s": self.tls.expires_s,
            "ca_expires_s": self.tls.ca_expires_s,
            "asks_clients": self.asks_clients,
            "failures": dict(sorted(self.tls.failures.items())),
        }


def node_tls(config: NodeConfig, registry: Registry) -> NodeTls | None:
    """None: the node is plain."""
    return NodeTls(config, registry) if config.tls.on else None


__all__ = ["NodeTls", "TlsTable", "node_tls"]

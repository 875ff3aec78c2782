"""TLS 1.3 between nodes: both sides show a certificate of the cluster's own authority, which names them.

A certificate says who holds its key in a URI among its alternative names: ``nova://CLUSTER/REGION/NODE`` for a node,
``nova-client://CLUSTER/NAME`` for whoever may only use the ports for clients. The session above compares that with the
identity in its HELLO, so nobody can take the name of another node, even with a certificate of its own.

Only TLS 1.3, only the authorities in `TlsFiles.ca` (the system's are not asked), no resumption: every connection
proves both certificates anew (RFC 8446). A cluster key, if there is one, is proved on top. Python's ssl has no exporter
(RFC 5705) that would bind such a proof to its connection, so the transcript of the session holds `Certified.binding`,
made of the fingerprints of both certificates: a proof can be relayed only by who holds both private keys, and then
nothing is left to protect.

Files are read again when they change. Streams that are up stay; handshakes from then on use what was read last. Let the
CA file hold two authorities while you go from one to the other.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, unquote

import msgspec

from nova.errors import ConfigError, PeerError
from nova.metrics import Registry
from nova.transport.base import Certified, Identity
from nova.transport.quiet import Quiet

__all__ = [
    "CertifiedName",
    "Refused",
    "Tls",
    "TlsFiles",
    "explain",
    "explain_http",
    "handshake_in_memory",
    "http_client",
]

log = logging.getLogger("nova.transport")

Role = Literal["node", "client"]
Use = Literal["peers", "clients", "http"]
PROTOCOLS: Final[dict[Use, str]] = {"peers": "nova/1", "clients": "nova/1", "http": "http/1.1"}
"""Application protocols (RFC 7301): what is meant for one kind of port can't be led to another (Brinkmann 2021)."""

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME; ssl.VerifyFlags does not name it
_ENABLE_KTLS: Final = 0x8  # SSL_OP_ENABLE_KTLS; ssl names it since Python 3.12
_DAY_S: Final = 86_400
_URI = re.compile(r"(nova|nova-client)://([^/]+)/([^/]+)(?:/([^/]+))?\Z")


class CertifiedName(msgspec.Struct, frozen=True):
    """Who a certificate is for. `region` is empty for a client."""

    cluster: str
    region: str
    node: str
    role: Role = "node"

    @property
    def uri(self) -> str:
        cluster, region, node = (quote(part, safe="") for part in (self.cluster, self.region, self.node))
        return f"nova://{cluster}/{region}/{node}" if self.role == "node" else f"nova-client://{cluster}/{node}"

    @classmethod
    def parse(cls, uri: str) -> CertifiedName | None:
        """None if it is no URI of nova."""
        if (match := _URI.match(uri)) is None or (match[1] == "nova") != (match[4] is not None):
            return None
        parts = [unquote(part) for part in match.groups()[1:] if part is not None]
        return cls(parts[0], parts[1], parts[2]) if match[1] == "nova" else cls(parts[0], "", parts[1], "client")

    @classmethod
    def of(cls, certificate: dict[str, Any]) -> CertifiedName | None:
        """That of a certificate as `getpeercert` tells it; None unless it has exactly one."""
        names = [cls.parse(value) for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
        known = [name for name in names if name is not None]
        return known[0] if len(known) == 1 else None


class TlsFiles(msgspec.Struct, frozen=True):
    """PEM files of one node or client.

    ca           the authorities of the cluster, one or more; nobody else is trusted
    certificate  of this node, and those between it and an authority, if there are any
    key          its private key, not encrypted
    client_ca    authorities of those who use the HTTP API and the ports for clients; "": clients of the HTTP API show
                 none, and those of ports for clients one of `ca`
    """

    ca: str
    certificate: str
    key: str
    client_ca: str = ""

    @classmethod
    def in_folder(cls, folder: str | os.PathLike[str], name: str) -> TlsFiles:
        """As `nova certs` lays them out."""
        at = Path(folder)
        return cls(str(at / "ca.pem"), str(at / f"{name}.pem"), str(at / f"{name}.key"))


class Refused(msgspec.Struct, frozen=True):
    """Why a handshake failed: the label of the metric, and words for the log."""

    cause: str
    text: str
    theirs: bool = False
    """The other side refused us."""


class _Context(ssl.SSLContext):
    """One that knows the fingerprint (SHA-256) of the certificate that it shows."""

    own: bytes = b""


class _Loaded(msgspec.Struct, frozen=True):
    """One reading of the files."""

    name: CertifiedName
    starts_s: float
    expires_s: float
    ca_expires_s: float
    fingerprint: bytes
    servers: dict[Use, _Context]
    client: _Context
    signature: tuple[object, ...]


class Tls:
    """What one node needs for TLS, from files that may change under it.

    cluster    certificates of another cluster are refused
    name       the node's, which its certificate must have; None: whatever it says
    now_s      Unix time, seconds
    warn_days  before a certificate or authority expires a warning is logged, once a day
    metrics    where `nova_tls_*` go
    kernel     let the kernel encrypt (kTLS) on blocking sockets, where it can
    raises     ConfigError if a file cannot be used, or certificate, key, authority and name do not fit each other. A
               certificate that has expired is only complained of: a node that its peers refuse can still be written to,
               and takes a renewed one without a restart
    """

    def __init__(
        self,
        files: TlsFiles,
        *,
        cluster: str,
        name: tuple[str, str] | None = None,
        now_s: Callable[[], float] = time.time,
        warn_days: int = 14,
        metrics: Registry | None = None,
        kernel: bool = True,
    ) -> None:
        self.files = files
        self.cluster = cluster
        self.quiet = Quiet(log)
        self.failures: dict[str, int] = {}
        self._wanted = name
        self._now_s = now_s
        self._warn_days = warn_days
        self._kernel = kernel
        self._warned_s = -float("inf")
        self._bad: tuple[object, ...] | None = None
        self._loaded = self._load()
        self._counter = None
        if metrics is not None:
            self._counter = metrics.counter(
                "nova_tls_handshake_failures_total", "TLS handshakes that failed, by cause", ["cause"]
            )
            metrics.gauge(
                "nova_tls_certificate_expiry_seconds", "Unix time at which this node's certificate expires",
                function=lambda: self._loaded.expires_s,
            )  # fmt: skip
            metrics.gauge(
                "nova_tls_ca_expiry_seconds", "Unix time at which the first of the trusted authorities expires",
                function=lambda: self._loaded.ca_expires_s,
            )  # fmt: skip
        self._warn()

    # -- what it is ----------------------------------------------------------------------------------------------

    @property
    def name(self) -> CertifiedName:
        """Of this side."""
        return self._loaded.name

    def identity(self) -> Identity:
        """Of a program that has no more of a name than its certificate says."""
        name = self.name
        return Identity(name.node, name.region, name.cluster, time.time_ns(), "")

    @property
    def expires_s(self) -> float:
        """Unix time at which this side's certificate expires."""
        return self._loaded.expires_s

    @property
    def ca_expires_s(self) -> float:
        """Unix time at which the first of the trusted authorities expires."""
        return self._loaded.ca_expires_s

    @property
    def fingerprint(self) -> str:
        """SHA-256 of this side's certificate, in hexadecimal."""
        return self._loaded.fingerprint.hex()

    def context(self, server: bool, use: Use = "peers") -> ssl.SSLContext:
        """For a handshake that begins now: on a port for `use`, or towards a port of a node."""
        return self._loaded.servers[use] if server else self._loaded.client

    def check(self, end: ssl.SSLObject | ssl.SSLSocket, peer: Identity) -> None:
        """Raises PeerError if the certificate behind a finished handshake is not that of `peer`."""
        if mismatch := self.certified(end).mismatch(peer):
            raise PeerError(f"peer {peer.node!r} says {mismatch}: refused, it takes another one's name")

    # -- rotation ------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Read the files again if they have changed, and warn before something expires. Whether new ones are in use.

        Files that do not fit each other are reported once, and the old ones stay in use: certificate and key can't be
        replaced at one stroke, so the next look finds them whole.
        """
        signature = _signature(self.files)
        taken = False
        if signature not in (self._loaded.signature, self._bad):
            before = self._loaded
            try:
                self._loaded = self._load()
            except ConfigError as error:
                self._bad = signature
                log.error("the new TLS files are not used, the old ones are: %s", error)
            else:
                self._bad = None
                self._warned_s = -float("inf")
                taken = True
                log.info(
                    "TLS files are read again: certificate %s, before %s, expires %s",
                    self.fingerprint[:16], before.fingerprint.hex()[:16], _day(self.expires_s),
                )  # fmt: skip
        self._warn()
        return taken

    def _warn(self) -> None:
        now = self._now_s()
        if now - self._warned_s < _DAY_S:
            return
        loaded, files = self._loaded, self.files
        for what, file, expires_s, mend in (
            ("certificate", files.certificate, loaded.expires_s, "nova certs renew"),
            ("authority", files.ca, loaded.ca_expires_s, "nova certs roll"),
        ):
            left = expires_s - now
            if left > self._warn_days * _DAY_S:
                continue
            self._warned_s = now
            if left <= 0:
                log.error("the %s in %s expired at %s; make a new one: %s", what, file, _day(expires_s), mend)
            else:
                log.warning(
                    "the %s in %s expires at %s, in %.1f days; make a new one: %s",
                    what, file, _day(expires_s), left / _DAY_S, mend,
                )  # fmt: skip
        if loaded.starts_s > now:
            self._warned_s = now
            log.error(
                "the certificate in %s is not valid before %s; is the clock of this machine right?",
                files.certificate, _day(loaded.starts_s),
            )  # fmt: skip

    # -- handshakes ----------------------------------------------------------------------------------------------

    def certified(self, end: ssl.SSLObject | ssl.SSLSocket, use: Use = "peers") -> Certified:
        """What a finished handshake, by a `context` of these, has proved of the other side: for its session.

        raises  PeerError, with a Refused as its second argument, if the other side's certificate is of no node of this
                cluster
        """
        seen, server_side = end.getpeercert(binary_form=True) or b"", end.server_side
        context = end.context
        assert isinstance(context, _Context)
        name = CertifiedName.of(end.getpeercert() or {})
        roles: Iterable[Role] = ("node", "client") if server_side and use == "clients" else ("node",)
        if name is None:
            raise _refusal("wrong_name", "its certificate names no node of nova (nova://CLUSTER/REGION/NODE)")
        if name.cluster != self.cluster:
            raise _refusal("wrong_name", f"its certificate is of cluster {name.cluster!r}, not of {self.cluster!r}")
        if name.role not in roles:
            raise _refusal("wrong_name", f"its certificate, {name.uri}, is for clients, and this is a port of nodes")
        if end.selected_alpn_protocol() != PROTOCOLS[use]:
            raise _refusal("other", f"it speaks {end.selected_alpn_protocol() or 'no protocol by name'}, not nova")
        theirs = hashlib.sha256(seen).digest()
        pair = (theirs, context.own) if server_side else (context.own, theirs)
        binding = hashlib.sha256(b"nova channel 1\0" + b"".join(pair)).digest()
        return Certified(name.cluster, name.region, name.node, binding)

    def refused(self, remote: str, refusal: Refused) -> str:
        """Count a failed handshake, log it unless the same was logged a moment ago, and give the line."""
        self.failures[refusal.cause] = self.failures.get(refusal.cause, 0) + 1
        if self._counter is not None:
            self._counter.labels(refusal.cause).inc()
        line = self.line(remote, refusal)
        host = remote.rpartition(":")[0] or remote
        self.quiet.warning((host, refusal.cause, refusal.theirs), "TLS: %s", line)
        return line

    def line(self, remote: str, refusal: Refused) -> str:
        """What happened, for a log or an error."""
        if not refusal.theirs:
            return f"{remote} is refused: {refusal.text}"
        own = f"{self.name.uri}, valid from {_day(self._loaded.starts_s)} to {_day(self.expires_s)}"
        return f"{remote} refuses this side's certificate ({own}): {refusal.text}"

    # -- reading -------------------------------------------------------------------------------------------------

    def _load(self) -> _Loaded:
        files = self.files
        signature = _signature(files)
        # The same files, but without a look at the clock: what they say must be known even if it is over.
        server_end = self._shown(timeless := _client(files), trusting=True)
        seen, raw = server_end.getpeercert() or {}, server_end.getpeercert(binary_form=True) or b""
        name = CertifiedName.of(seen)
        if name is None:
            raise ConfigError(
                f"{files.certificate} names no node: it has no nova://CLUSTER/REGION/NODE among its alternative names; "
                "nova certs issue makes one that does"
            )
        if name.cluster != self.cluster:
            raise ConfigError(
                f"{files.certificate} is of cluster {name.cluster!r}, this side of {self.cluster!r}; issue one for it"
            )
        if self._wanted is not None and (name.node, name.region) != self._wanted:
            raise ConfigError(
                f"{files.certificate} is of node {name.node!r} in region {name.region!r}, this is "
                f"{self._wanted[0]!r} in {self._wanted[1]!r}; issue one for it: nova certs issue {self._wanted[0]} "
                f"--region {self._wanted[1]}"
            )
        if name.role == "node":
            self._shown(timeless, trusting=False)
        authorities = timeless.get_ca_certs()
        client = _client(files)
        if self._kernel:
            client.options |= _ENABLE_KTLS
        servers = {use: _server(files, use) for use in PROTOCOLS}
        if self._kernel:
            servers["peers"].options |= _ENABLE_KTLS
        for each in (client, *servers.values()):
            each.own = hashlib.sha256(raw).digest()
        return _Loaded(
            name,
            _seconds(str(seen["notBefore"])),
            _seconds(str(seen["notAfter"])),
            min(_seconds(str(each["notAfter"])) for each in authorities),
            client.own,
            servers,
            client,
            signature,
        )

    def _shown(self, client: ssl.SSLContext, *, trusting: bool) -> ssl.SSLObject:
        """A port's end of a handshake of these files with themselves; `trusting`: the certificate need not be one that
        a port may show."""
        files = self.files
        server = _server(files, "peers")
        client.verify_mode = ssl.CERT_NONE if trusting else ssl.CERT_REQUIRED
        for context in (server, client):
            context.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
        try:
            return handshake_in_memory(client, server)[1]
        except ssl.SSLError as error:
            text = explain(error).text.replace("its certificate", f"the certificate in {files.certificate}")
            raise ConfigError(f"{text}; the authorities are those in {files.ca}") from None


def _server(files: TlsFiles, use: Use) -> _Context:
    context = _context(ssl.PROTOCOL_TLS_SERVER, files)
    if use == "peers":
        _trust(context, files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    elif use == "clients":
        _trust(context, files.client_ca or files.ca)
        if files.client_ca:
            _trust(context, files.ca)  # members talk to each other there, too
        context.verify_mode = ssl.CERT_REQUIRED
    elif files.client_ca:
        _trust(context, files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([PROTOCOLS[use]])
    # A resumed session would go on with a certificate that has expired or was taken back since.
    context.num_tickets = 0
    return context


def _client(files: TlsFiles) -> _Context:
    context = _context(ssl.PROTOCOL_TLS_CLIENT, files)
    context.check_hostname = False  # peers have names, not hosts: `Tls.certified` and the session look at those
    _trust(context, files.ca)
    context.set_alpn_protocols([PROTOCOLS["peers"]])
    return context


def _context(protocol: int, files: TlsFiles) -> _Context:
    context = _Context(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # An authority may be one that another has signed: what is pinned is that one.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT | ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    _show(context, files.certificate, files.key)
    return context


def _show(context: ssl.SSLContext, certificate: str, key: str) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{key} is not the key of {certificate}; give those that belong together") from None
        raise ConfigError(
            f"{certificate} and {key} are not a certificate and its key in PEM, without a password "
            f"({error.reason or error})"
        ) from None
    except OSError as error:
        raise _unreadable(error, certificate, key) from None


def _no_password() -> str:
    """Without this, OpenSSL would ask on the terminal."""
    return ""


def _trust(context: ssl.SSLContext, file: str) -> None:
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{file} holds no certificate in PEM ({error.reason or error}); give that of the CA"
        ) from None
    except OSError as error:
        raise _unreadable(error, file) from None


def _unreadable(error: OSError, *files: str) -> ConfigError:
    """OpenSSL does not say which file it could not read."""
    bad = next((file for file in files if not os.access(file, os.R_OK)), files[0])
    return ConfigError(f"{bad} cannot be read ({error.strerror}); nova certs makes such files, make it readable")


def _signature(files: TlsFiles) -> tuple[object, ...]:
    """Differs as soon as a file was replaced or written to."""
    out: list[object] = []
    for file in (files.ca, files.certificate, files.key, files.client_ca):
        try:
            told = os.stat(file) if file else None
        except OSError as error:
            out.append(error.errno)
        else:
            out.append((told.st_mtime_ns, told.st_size, told.st_ino, told.st_dev) if told is not None else None)
    return tuple(out)


def handshake_in_memory(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a handshake without a socket: (client's, server's). Raises SSLError as the first end does."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True))
    done = [False, False]
    while not all(done):
        for at, end in enumerate(ends):
            if not done[at]:
                try:
                    end.do_handshake()
                    done[at] = True
                except ssl.SSLWantReadError:
                    pass
    return ends


def http_client(ca: str = "", certificate: str = "", key: str = "") -> ssl.SSLContext:
    """For a client of the HTTP API: TLS 1.3, and the certificate has to have the host's name.

    ca           PEM file with the authorities to trust; "": those of the system
    certificate  PEM file to show, with its `key`; "": none
    raises       ConfigError if a file cannot be used
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([PROTOCOLS["http"]])
    if ca:
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
        _trust(context, ca)
    else:
        context.load_default_certs()
    if certificate:
        _show(context, certificate, key or certificate)
    return context


def _seconds(date: str) -> float:
    return float(ssl.cert_time_to_seconds(date))


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _refusal(cause: str, text: str) -> PeerError:
    return PeerError(text, Refused(cause, text))


# -- why a handshake failed ------------------------------------------------------------------------------------------

PLAIN: Final = Refused("plain", "it does not speak TLS, and this side does: give both sides [tls], or neither")
PLAIN_HTTP: Final = Refused("plain", "it speaks plain HTTP, and this port speaks TLS: ask https://")
HUNG_UP: Final = Refused(
    "hung_up", "it hung up in the TLS handshake; does it speak TLS 1.3? give both sides [tls], or neither"
)
_OLD: Final = "it speaks TLS 1.2 or older, and only TLS 1.3 is spoken here"

# X509_V_ERR_*: the codes that mean one of the causes; all others say that the authority does not stand behind it
_VERIFY: Final = {
    9: ("not_yet_valid", "its certificate is not yet valid; is the clock right on both machines?"),
    10: ("expired", "its certificate has expired; make a new one: nova certs renew"),
    62: ("wrong_name", "its certificate is for another host"),
    63: ("wrong_name", "its certificate is for another host"),
    64: ("wrong_name", "its certificate is for another address"),
}
_UNTRUSTED: Final = "its certificate is not of an authority that is trusted here"

# (the end of) what OpenSSL calls an error -> (cause, words, whether the other side refused us)
_REASONS: Final = (
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "no_certificate", "it shows no certificate, and has to", False),
    ("ALERT_CERTIFICATE_REQUIRED", "no_certificate", "it asks for a certificate, and none was shown", True),
    ("ALERT_CERTIFICATE_EXPIRED", "expired", "for it, it has expired; make a new one: nova certs renew", True),
    ("ALERT_UNKNOWN_CA", "untrusted", "it is not of an authority that is trusted there", True),
    ("ALERT_DECRYPT_ERROR", "untrusted", "its signature does not fit", True),
    ("ALERT_BAD_CERTIFICATE", "untrusted", "for it, it is not valid: too early, or for other uses", True),
    ("ALERT_CERTIFICATE_UNKNOWN", "untrusted", "it cannot be used there", True),
    ("ALERT_CERTIFICATE_REVOKED", "untrusted", "it was taken back", True),
    ("ALERT_UNSUPPORTED_CERTIFICATE", "untrusted", "it is not for this use", True),
    ("ALERT_ACCESS_DENIED", "wrong_name", "its name has no place there", True),
    ("ALERT_PROTOCOL_VERSION", "version", "it speaks no TLS 1.3: TLS 1.2 or older, or none at all", False),
    ("UNSUPPORTED_PROTOCOL", "version", _OLD, False),
    ("NO_PROTOCOLS_AVAILABLE", "version", _OLD, False),
    ("WRONG_VERSION_NUMBER", "plain", PLAIN.text, False),
    ("HTTP_REQUEST", "plain", PLAIN.text, False),
    ("HTTPS_PROXY_REQUEST", "plain", PLAIN.text, False),
    ("RECORD_LAYER_FAILURE", "plain", PLAIN.text, False),
)  # fmt: skip


def explain(error: ssl.SSLError) -> Refused:
    """What a failed handshake means, seen from the side on which the error came up."""
    if isinstance(error, ssl.SSLCertVerificationError):
        code, words = error.verify_code, error.verify_message
        if code in _VERIFY:
            return Refused(*_VERIFY[code])
        return Refused("untrusted", f"{_UNTRUSTED} ({words})")
    reason = error.reason or ""
    for end, cause, text, theirs in _REASONS:
        if reason.endswith(end):
            return Refused(cause, text, theirs)
    if isinstance(error, ssl.SSLEOFError):
        return HUNG_UP
    return Refused("other", f"the TLS handshake failed ({reason.lower().replace('_', ' ') or error})")


def explain_http(error: Exception) -> str:
    """Why a request over TLS failed, for who made it: the reason alone, to stand in a sentence."""
    if not isinstance(error, ssl.SSLError):
        return getattr(error, "strerror", None) or str(error)
    found = explain(error)
    if found.cause == "plain":
        return "it does not speak TLS; ask http://"
    if found.theirs:
        return f"it refuses this side's certificate: {found.text}; --cert names one"
    return f"{found.text}; --ca names whom to trust" if found.cause == "untrusted" else found.text

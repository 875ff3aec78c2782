"""A certificate authority in a folder: for development, and for clusters that have no other.

    DIR/ca.pem   who is trusted: the authority, and during a change of it the old and the new one
    DIR/ca.key   its private key; nodes never need it, keep it elsewhere
    DIR/NODE.pem, DIR/NODE.key   of each node or client

Private keys are readable by their owner only. Nothing is overwritten but by `renew` and `roll`, and those replace
whole files at one stroke.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from nova.crypto import certificates
from nova.errors import ConfigError, UsageError
from nova.transport.tls import CertifiedName, Tls, TlsFiles

__all__ = ["ALGORITHMS", "Authority", "Shown", "names", "private", "problems", "read", "read_all"]

ALGORITHMS: Final = ("p256", "ed25519")
CA: Final = "ca"
HOSTS: Final = ("localhost", "127.0.0.1", "::1")
EARLIER: Final = datetime.timedelta(minutes=5)
"""Certificates begin so long before they are made: the clocks of machines differ."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)


class Shown(msgspec.Struct, frozen=True):
    """What a certificate says. Times are Unix seconds."""

    file: str
    role: str
    name: str
    uri: str
    cluster: str
    region: str
    hosts: list[str]
    algorithm: str
    issuer: str
    starts_s: float
    expires_s: float
    fingerprint: str


class Authority:
    """The authority of one cluster. Raises UsageError; NovaError without the module cryptography."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._lib = certificates("nova certs")
        self._key = self._read_key(self.folder / f"{CA}.key")
        # The one that signs stands first; behind it, during a change, the one before.
        self._certificates = _parse_all(self._lib, self.folder / f"{CA}.pem")
        if _raw(self._lib, self._certificates[0].public_key()) != _raw(self._lib, self._key.public_key()):
            raise UsageError(
                f"{self.folder / 'ca.key'} is not the key of the first certificate in ca.pem; put them right"
            )

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        cluster: str = "nova",
        *,
        algorithm: str = "p256",
        days: float = 3650,
        now: datetime.datetime | None = None,
    ) -> Authority:
        """Make the authority of a cluster in a folder, which is made if it is missing."""
        lib = certificates("nova certs")
        _check_name("cluster", cluster)
        at = Path(folder)
        _folder(at)
        if there := [file for file in (at / f"{CA}.pem", at / f"{CA}.key") if file.exists()]:
            raise UsageError(f"{there[0]} is there already, and is not overwritten; name another folder, or roll it")
        key = _new_key(lib, algorithm)
        own = _ca_certificate(lib, key, cluster, days, now or _now())
        _write_new(at / f"{CA}.key", _key_bytes(lib, key), 0o600)
        _write_new(at / f"{CA}.pem", _pem(lib, own), 0o644)
        return cls(at)

    @property
    def cluster(self) -> str:
        """Whose certificates it issues."""
        return _organization(self._lib, self._certificates[0])

    def issue(
        self,
        node: str,
        region: str = "",
        *,
        hosts: Sequence[str] = HOSTS,
        client: bool = False,
        algorithm: str = "",
        days: float = 90,
        now: datetime.datetime | None = None,
    ) -> tuple[Path, Path]:
        """Make a key and a certificate: their files.

        hosts      names and addresses under which the HTTP API of a node is reached
        client     for the ports of clients only: it is no node
        algorithm  of ALGORITHMS; "": that of the authority
        days       how long it is valid, from `now` on; never longer than the authority
        """
        _check_name("node", node)
        if node == CA:
            raise UsageError(f"a node can't be called {CA!r}: its files are those of the authority")
        if not client:
            _check_name("region", region)
        files = self.folder / f"{node}.pem", self.folder / f"{node}.key"
        if there := [file for file in files if file.exists()]:
            raise UsageError(
                f"{there[0]} is there already, and is not overwritten; to replace it: nova certs renew {node}"
            )
        name = CertifiedName(self.cluster, "" if client else region, node, "client" if client else "node")
        key = _new_key(self._lib, algorithm or _algorithm(self._lib, self._key))
        made = self._sign(name, key, () if client else hosts, days, now or _now())
        _write_new(files[1], _key_bytes(self._lib, key), 0o600)
        _write_new(files[0], _pem(self._lib, made), 0o644)
        return files

    def renew(self, node: str, *, days: float | None = None, now: datetime.datetime | None = None) -> tuple[Path, Path]:
        """Replace key and certificate of a node by new ones for the same name.

        days  as for `issue`; None: as long as the old one was valid
        """
        files = self.folder / f"{node}.pem", self.folder / f"{node}.key"
        old, shown = _parse_all(self._lib, files[0])[0], read(files[0])
        name = CertifiedName.parse(shown.uri)
        if name is None:
            raise UsageError(f"{files[0]} names no node or client; issue a new one: nova certs issue")
        if days is None:
            days = (shown.expires_s - shown.starts_s - EARLIER.total_seconds()) / 86_400
        key = _new_key(self._lib, _algorithm(self._lib, old.public_key()))
        made = self._sign(name, key, shown.hosts, days, now or _now())
        # A node that looks between the two strokes finds files that do not fit, goes on with what it has, looks again.
        _replace(files[1], _key_bytes(self._lib, key), 0o600)
        _replace(files[0], _pem(self._lib, made), 0o644)
        return files

    def roll(self, *, finish: bool = False, days: float = 3650, now: datetime.datetime | None = None) -> None:
        """Change the authority. First a new one beside the old one: hand ca.pem to all nodes, then renew all of them.
        Then `finish`, which takes the old one out of ca.pem: hand it out again.
        """
        if finish:
            if len(self._certificates) == 1:
                raise UsageError(f"{self.folder / 'ca.pem'} holds one authority; there is no change to finish")
            old = {certificate.subject for certificate in self._certificates[1:]}
            left = [
                name
                for name in names(self.folder)
                if _parse_all(self._lib, self.folder / f"{name}.pem")[0].issuer in old
            ]
            if left:
                raise UsageError(f"{', '.join(left)} would be refused: of the old authority still; nova certs renew")
            _replace(self.folder / f"{CA}.pem", _pem(self._lib, self._certificates[0]), 0o644)
            del self._certificates[1:]
            return
        if len(self._certificates) > 1:
            raise UsageError(
                f"{self.folder / 'ca.pem'} is in the middle of a change; finish it: nova certs roll --finish"
            )
        key = _new_key(self._lib, _algorithm(self._lib, self._key))
        made = _ca_certificate(self._lib, key, self.cluster, days, now or _now())
        _replace(self.folder / f"{CA}.key", _key_bytes(self._lib, key), 0o600)
        _replace(self.folder / f"{CA}.pem", _pem(self._lib, made) + _pem(self._lib, self._certificates[0]), 0o644)
        self._key = key
        self._certificates.insert(0, made)

    def _sign(self, name: CertifiedName, key: Any, hosts: Sequence[str], days: float, now: datetime.datetime) -> Any:
        lib, x509 = self._lib, self._lib.x509
        issuer = self._certificates[0]
        start, end = now - EARLIER, now + datetime.timedelta(days=days)
        end = min(end, issuer.not_valid_after_utc)
        if end <= start:
            raise UsageError(f"{days:g} days from now the certificate would be over before it begins; give more days")
        uses = [lib.ExtendedKeyUsageOID.CLIENT_AUTH]
        if name.role == "node":
            uses.append(lib.ExtendedKeyUsageOID.SERVER_AUTH)
        names = [x509.UniformResourceIdentifier(name.uri), *(_host(lib, host) for host in hosts)]
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject(lib, name.cluster, name.node))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(lib, signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
            )
        )  # fmt: skip
        return builder.sign(self._key, _hash(lib, self._key))

    def _read_key(self, file: Path) -> Any:
        try:
            return self._lib.serialization.load_pem_private_key(_read(file), None)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{file} is no private key in PEM without a password ({error})") from None


def read(file: str | os.PathLike[str]) -> Shown:
    """What the first certificate of a PEM file says. Raises UsageError."""
    return read_all(file)[0]


def read_all(file: str | os.PathLike[str]) -> list[Shown]:
    """What every certificate of a PEM file says. Raises UsageError."""
    lib = certificates("nova certs")
    return [_shown(lib, file, certificate) for certificate in _parse_all(lib, Path(file))]


def names(folder: Path) -> list[str]:
    """Whose certificates lie in a folder, the authority's left out."""
    return sorted(file.stem for file in folder.glob("*.pem") if file.stem != CA and file.with_suffix(".key").exists())


def problems(folder: Path, node: str, now_s: float) -> list[str]:
    """What peers would refuse, or should not be, of a node's files; empty if they are in order."""
    files = TlsFiles.in_folder(folder, node)
    try:
        shown = read(files.certificate)
        tls = Tls(files, cluster=shown.cluster, now_s=lambda: shown.starts_s, warn_days=0)
        found = []
    except (UsageError, ConfigError) as error:
        return [str(error)]
    if tls.name.node != node:
        found.append(f"{files.certificate} is for {tls.name.node!r}, and not for {node!r}")
    for what, starts_s, expires_s in (
        ("certificate", shown.starts_s, tls.expires_s),
        ("authority", 0.0, tls.ca_expires_s),
    ):
        if not starts_s <= now_s < expires_s:
            found.append(f"its {what} {'has expired' if now_s >= expires_s else 'is not yet valid'}")
    if not private(Path(files.key)):
        found.append(f"{files.key} can be read by others; chmod 600 {files.key}")
    return found


def _shown(lib: Any, file: str | os.PathLike[str], certificate: Any) -> Shown:
    x509 = lib.x509
    hosts: list[str] = []
    uris: list[str] = []
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        pass
    else:
        hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    name = next((known for uri in uris if (known := CertifiedName.parse(uri)) is not None), None)
    return Shown(
        str(file),
        "authority" if is_ca else name.role if name is not None else "unknown",
        name.node if name is not None else _common_name(lib, certificate),
        name.uri if name is not None else "",
        name.cluster if name is not None else _organization(lib, certificate),
        name.region if name is not None else "",
        hosts,
        _algorithm(lib, certificate.public_key()),
        certificate.issuer.rfc4514_string(),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
        certificate.fingerprint(lib.hashes.SHA256()).hex(),
    )


def private(file: Path) -> bool:
    """Whether nobody but its owner can read it."""
    return not stat.S_IMODE(file.stat().st_mode) & 0o077


# -- parts of certificates -------------------------------------------------------------------------------------------


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _new_key(lib: Any, algorithm: str) -> Any:
    if algorithm == "p256":
        return lib.ec.generate_private_key(lib.ec.SECP256R1())
    if algorithm == "ed25519":
        return lib.ed25519.Ed25519PrivateKey.generate()
    raise UsageError(f"algorithm {algorithm!r} is not known; use one of {', '.join(ALGORITHMS)}")


def _algorithm(lib: Any, key: Any) -> str:
    ed25519 = (lib.ed25519.Ed25519PrivateKey, lib.ed25519.Ed25519PublicKey)
    return "ed25519" if isinstance(key, ed25519) else "p256"


def _hash(lib: Any, key: Any) -> Any:
    return None if _algorithm(lib, key) == "ed25519" else lib.hashes.SHA256()


def _raw(lib: Any, public: Any) -> bytes:
    encoding, form = lib.serialization.Encoding.DER, lib.serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(public.public_bytes(encoding, form))


def _key_bytes(lib: Any, key: Any) -> bytes:
    part = lib.serialization
    return bytes(key.private_bytes(part.Encoding.PEM, part.PrivateFormat.PKCS8, part.NoEncryption()))


def _pem(lib: Any, certificate: Any) -> bytes:
    return bytes(certificate.public_bytes(lib.serialization.Encoding.PEM))


def _subject(lib: Any, cluster: str, name: str) -> Any:
    oid = lib.NameOID
    return lib.x509.Name(
        [
            lib.x509.NameAttribute(oid.ORGANIZATION_NAME, cluster),
            lib.x509.NameAttribute(oid.COMMON_NAME, name),
        ]
    )


def _organization(lib: Any, certificate: Any) -> str:
    found = certificate.subject.get_attributes_for_oid(lib.NameOID.ORGANIZATION_NAME)
    return str(found[0].value) if found else ""


def _common_name(lib: Any, certificate: Any) -> str:
    found = certificate.subject.get_attributes_for_oid(lib.NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def _usage(lib: Any, *, signs: bool) -> Any:
    return lib.x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _ca_certificate(lib: Any, key: Any, cluster: str, days: float, now: datetime.datetime) -> Any:
    x509 = lib.x509
    # Two authorities of one cluster must not share a name: chains are found by it.
    subject = _subject(lib, cluster, f"nova CA {x509.random_serial_number():x}"[:24])
    public = key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(lib, signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    )
    return builder.sign(key, _hash(lib, key))


def _host(lib: Any, host: str) -> Any:
    try:
        return lib.x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
        raise UsageError(f"host {host!r} is neither a name nor an address; leave the port away")
    return lib.x509.DNSName(host)


def _check_name(what: str, name: str) -> None:
    if not _NAME.match(name):
        raise UsageError(f"{what} {name!r} is no name; use 1 to 63 letters, digits, dots, dashes and underscores")


# -- files -----------------------------------------------------------------------------------------------------------


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        mend = "nova certs init makes an authority" if file.stem == CA else "nova certs issue makes one"
        raise UsageError(f"{file} cannot be read ({error.strerror}); {mend}") from None


def _parse_all(lib: Any, file: Path) -> list[Any]:
    try:
        found = [lib.x509.load_pem_x509_certificate(part) for part in _PEM.findall(_read(file))]
    except ValueError as error:
        raise UsageError(f"{file} holds a certificate that cannot be read ({error})") from None
    if not found:
        raise UsageError(f"{file} holds no certificate in PEM; name another file")
    return found


def _folder(at: Path) -> None:
    try:
        at.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{at} cannot be made ({error.strerror}); name another folder") from None


def _write_new(file: Path, data: bytes, mode: int) -> None:
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
            out.write(data)
    except FileExistsError:
        raise UsageError(f"{file} is there already, and is not overwritten") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be written ({error.strerror}); name another folder") from None


def _replace(file: Path, data: bytes, mode: int) -> None:
    new = file.with_name(f".{file.name}.new")
    new.unlink(missing_ok=True)  # of one who was interrupted
    _write_new(new, data, mode)
    os.replace(new, file)

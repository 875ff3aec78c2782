"""What a node is told at its start, and where it may be told.

Precedence, highest first: command line flags, environment (``NOVA_*``), the TOML file, the defaults below. A key of a
table is spelled with an underscore in the environment (``limits.body_bytes_max`` is ``NOVA_LIMITS_BODY_BYTES_MAX``),
lists are separated by commas (``NOVA_JOIN=a:7420,b:7420``), free tables are pairs (``NOVA_KINDS=vm/=vm,cfg/=map``).

A secret and its file (``key`` and ``key_file``, the same for ``token`` and ``audit_key``) are one setting: naming
either in a stronger place replaces both of a weaker one.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from nova.errors import ConfigError
from nova.server import group_config, region_config, tls_config
from nova.server.addresses import is_loopback, split_address
from nova.server.engines import check_engine
from nova.server.group_config import Consensus
from nova.server.region_config import Hybrid
from nova.server.tls_config import TlsTable

if TYPE_CHECKING:
    from nova.conflict.policy import Policy
    from nova.store.core import StoreConfig

KEY_CHARS_MIN = 32


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the node accepts and how much it keeps: bytes, checkpoints (every `checkpoint_ms`, 0: only when asked for;
    the log is kept from the oldest one on), and for the audit trail days and events (0: all)."""

    body_bytes_max: int = 1024 * 1024
    value_bytes_max: int = 256 * 1024
    key_bytes_max: int = 1024
    history_bytes: int = 64 * 1024 * 1024
    segment_bytes: int = 64 * 1024 * 1024
    snapshot_log_bytes: int = 256 * 1024 * 1024
    checkpoint_ms: int = 0
    checkpoints_kept: int = 8
    audit_days: int = 0
    audit_events: int = 0


class Gossip(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often the node talks to its peers without being asked. Milliseconds; on a WAN round_ms = 500 is enough."""

    round_ms: int = 200
    push_pull_ms: int = 5_000
    probe_ms: int = 1_000
    probe_timeout_ms: int = 400
    suspicion_ms: int = 4_000
    anti_entropy_ms: int = 30_000


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node.

    name           unique in the cluster; default: the host's name
    region         nodes of one region are close to each other
    listen         HOST:PORT for peers
    http           HOST:PORT for the HTTP API
    data           directory of the log, the snapshots and the catalogue
    join           HOST:PORT of peers to ask first
    cluster        peers of another cluster are refused
    key            shared secret that peers prove, at least 32 characters
    token          bearer token that the HTTP API asks for
    audit_key      secret of 16 to 64 bytes under which audit events are chained; as long as the trail lives
    insecure       listen beyond loopback without key and token
    chaos          allow /v1/chaos to cut links
    kinds          key prefix -> kind of the keys below it
    strategies     key prefix -> name of the strategy that settles conflicts below it
    policy         TOML file with the policy for conflicts of keys that no strategy is named for
    invariants     truths about many keys, tables of kind (sum_le, unique, reference), prefix, path, by, limit, to, name
    semantics      rules about parts of one key, tables of name, path, values, requires or excludes, one_of, prefix
    voters         nodes that the strategy `consensus_vote` asks; a majority of them all decides (policies name theirs)
    vote_timeout_ms  after as long without a majority vote_otherwise decides; 0: they are waited for
    vote_otherwise   a strategy, by default lww; with manual a tie or a time-out waits for somebody
    escalate       who is told, one after the other, of a conflict that waits for somebody; each after one more
    escalate_ms    of these, counted from when the conflict was found
    classes        key prefix -> class of the keys below it: eventual, strong or hybrid; without one a key is eventual
    sync           what the network is like: datacenter, internet, hybrid, or auto to find it out by round trips; sets
                   gossip.round_ms (internet 500, else 200). Default: not looked at
    transport      engine of the streams between nodes: auto, tcp, uring or rdma, as far as they are there
    link_delay_ms  region -> one-way delay that is added to what is sent there (emulation, for demonstrations)
    """

    name: str
    region: str = "local"
    listen: str = "127.0.0.1:7420"
    http: str = "127.0.0.1:8420"
    data: str = "nova-data"
    join: list[str] = []
    cluster: str = "nova"
    key: str | None = None
    key_file: str | None = None
    token: str | None = None
    token_file: str | None = None
    audit_key: str | None = None
    audit_key_file: str | None = None
    insecure: bool = False
    chaos: bool = False
    limits: Limits = Limits()
    gossip: Gossip = Gossip()
    kinds: dict[str, str] = {}
    strategies: dict[str, str] = {}
    policy: str | None = None
    invariants: list[dict[str, Any]] = []
    semantics: list[dict[str, Any]] = []
    voters: list[str] = []
    vote_timeout_ms: int = 10_000
    vote_otherwise: str = "lww"
    escalate: list[str] = []
    escalate_ms: int = 3_600_000
    classes: dict[str, str] = {}
    consensus: Consensus = Consensus()
    hybrid: Hybrid = Hybrid()
    tls: TlsTable = TlsTable()
    transport: str = "auto"
    sync: str = ""
    link_delay_ms: dict[str, float] = {}

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        for secret in SECRETS:
            shown[secret] = "***" if shown[secret] else None
        return f"NodeConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


AUDIT_KEY_BYTES_MIN, AUDIT_KEY_BYTES_MAX = 16, 64
SECRETS = ("key", "token", "audit_key")
TABLES: dict[str, type[msgspec.Struct]] = {
    "limits": Limits,
    "gossip": Gossip,
    "consensus": Consensus,
    "hybrid": Hybrid,
    "tls": TlsTable,
}

# "limits.body_bytes_max" -> its type; free tables (kinds, ...) are leaves
LEAVES: dict[str, Any] = {
    f"{table}.{name}": kind for table, struct in TABLES.items() for name, kind in get_type_hints(struct).items()
} | {name: kind for name, kind in get_type_hints(NodeConfig).items() if name not in TABLES}

# NOVA_* names that are no configuration of a node
OTHER_ENV = {
    "NOVA_NODE",
    "NOVA_CA",
    "NOVA_CERT",
    "NOVA_CERTS",
    "NOVA_CONFIG",
    "NOVA_TEST_DATA",
    "NOVA_SANITIZE",
    "NOVA_KERNELS",
    "NOVA_WITHOUT",
    "NOVA_RDMA_DEV",
}


def load(
    file: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> NodeConfig:
    """The configuration of one node from all three places.

    env     usually os.environ; None: nothing
    flags   name -> value, dotted for tables; a None value is a flag that was not given
    raises  ConfigError: one line with the place, the key, the value and the mend
    """
    settings: dict[str, _Setting] = {}
    for layer in (_from_file(file) if file is not None else {}, _from_env(env or {}), _from_flags(flags or {})):
        for secret in SECRETS:
            given = [layer[name] for name in (secret, f"{secret}_file") if name in layer]
            if len(given) == 2:
                raise given[1].error(f"{secret} and {secret}_file are both given; keep one of them")
            if given:
                settings.pop(secret, None)
                settings.pop(f"{secret}_file", None)
        settings |= layer
    _read_secrets(settings)
    for name, check in _CHECKS.items():
        if name in settings:
            settings[name].check(check)
    values: dict[str, Any] = {"name": _host_name()}
    for name, setting in settings.items():
        table, _, leaf = name.rpartition(".")
        (values.setdefault(table, {}) if table else values)[leaf] = setting.value
    config = msgspec.convert(values, NodeConfig)
    _check_whole(config, settings)
    return config


class _Setting(msgspec.Struct):
    """A value with the place that it came from, for the error that may follow."""

    name: str
    value: Any
    place: str
    shown: str
    """How the user wrote it, as in ``listen = 7420``."""

    def error(self, problem: str) -> ConfigError:
        return ConfigError(f"{self.place}: {problem}")

    def check(self, check: Callable[[Any], None]) -> None:
        try:
            check(self.value)
        except ValueError as error:
            raise self.error(f"{self.shown} {error}") from None


# --- the three places -------------------------------------------------------------------------------------------------


def _from_file(file: str | os.PathLike[str]) -> dict[str, _Setting]:
    path = Path(file)
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file; give --config a TOML file that exists") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); make it readable for this user") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}; strings need quotes, tables a [name] line") from None
    found: dict[str, _Setting] = {}
    for name, value in document.items():
        if name in TABLES and isinstance(value, dict):
            leaves = {f"{name}.{leaf}": inner for leaf, inner in value.items()}
        else:
            leaves = {name: value}
        for leaf, inner in leaves.items():
            line = _line_of(text, leaf)
            place = f"{path} line {line}" if line else str(path)
            if leaf not in LEAVES:
                raise ConfigError(f"{place}: {_unknown(leaf, LEAVES)}")
            setting = _Setting(leaf, inner, place, f"{leaf} = {_toml(leaf, inner)}")
            setting.check(lambda value, leaf=leaf: _check_type(value, LEAVES[leaf]))  # type: ignore[misc]
            if LEAVES[leaf] == dict[str, float]:
                setting.value = {key: float(number) for key, number in inner.items()}
            found[leaf] = setting
    return found


def _from_env(env: Mapping[str, str]) -> dict[str, _Setting]:
    names = {"NOVA_" + leaf.replace(".", "_").upper(): leaf for leaf in LEAVES}
    found = {}
    for variable, text in env.items():
        if not variable.startswith("NOVA_") or variable in OTHER_ENV:
            continue
        if leaf := names.get(variable):
            found[leaf] = _from_text(leaf, text, "environment", f"{variable}={_shown(leaf, text)}")
        # Other programs own names like this too (Kubernetes makes NOVA_PORT), so only a near miss is an error.
        elif near := difflib.get_close_matches(variable, names, 1, 0.87):
            raise ConfigError(f"environment: {variable} is no setting of nova; did you mean {near[0]}?")
    return found


def _from_flags(flags: Mapping[str, Any]) -> dict[str, _Setting]:
    found = {}
    for leaf, value in flags.items():
        if value is None or value == []:
            continue
        if leaf not in LEAVES:
            raise ConfigError(f"command line: {_unknown(leaf, LEAVES)}")
        flag = "--tls" if leaf == "tls.dir" else "--" + leaf.replace(".", "-").replace("_", "-")
        if isinstance(value, str):
            found[leaf] = _from_text(leaf, value, "command line", f"{flag} {_shown(leaf, value)}")
        else:
            found[leaf] = _Setting(leaf, value, "command line", f"{flag} {_shown(leaf, value)}")
            found[leaf].check(lambda value, leaf=leaf: _check_type(value, LEAVES[leaf]))  # type: ignore[misc]
    return found


def _from_text(leaf: str, text: str, place: str, shown: str) -> _Setting:
    """A setting of the right type from the text of a flag or a variable."""
    setting = _Setting(leaf, text, place, shown)
    kind = LEAVES[leaf]
    items = [item.strip() for item in text.split(",") if item.strip()]
    if kind is bool:
        if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            raise setting.error(f"{shown} is neither true nor false; write 1 or 0")
        setting.value = text.lower() in ("1", "true", "yes", "on")
    elif kind is int:
        try:
            setting.value = int(text)
        except ValueError:
            raise setting.error(f"{shown} is not a whole number; write digits only, like 1048576") from None
    elif kind == list[str]:
        setting.value = items
    elif get_origin(kind) is dict:
        inner = get_args(kind)[1]
        try:
            # The last "=" divides: prefixes may hold one, kinds and numbers never do.
            setting.value = {key: inner(value) for key, _, value in (item.rpartition("=") for item in items)}
        except ValueError:
            raise setting.error(f"{shown} has a value that is not a number; write NAME=NUMBER,...") from None
        if "" in setting.value:
            raise setting.error(f"{shown} is not a list of pairs; write NAME=VALUE,NAME=VALUE")
    return setting


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_type(value: Any, kind: Any) -> None:
    try:
        msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError:
        wanted = {
            bool: "true or false",
            int: "a whole number",
            list[str]: 'a list of strings, like ["10.0.0.1:7420"]',
            dict[str, str]: "a table of strings",
            dict[str, float]: "a table of numbers",
        }.get(kind, "a string in quotes")
        raise ValueError(f"is {_noun(value)}; it must be {wanted}") from None


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise ValueError("is not a name; use 1 to 63 letters, digits, dots, dashes and underscores")


def _check_join(addresses: list[str]) -> None:
    for address in addresses:
        try:
            if split_address(address)[1] == 0:
                raise ValueError("has the port 0, where nobody listens; give the port of the peer's --listen")
        except ValueError as error:
            raise ValueError(f'has "{address}", which {error}') from None


def _check_key(key: str) -> None:
    if len(key) < KEY_CHARS_MIN:
        raise ValueError(
            f"has {len(key)} characters; a cluster key has at least {KEY_CHARS_MIN}: openssl rand -hex 32 makes one"
        )


def _check_audit_key(key: str) -> None:
    if not AUDIT_KEY_BYTES_MIN <= len(key.encode()) <= AUDIT_KEY_BYTES_MAX:
        raise ValueError(
            f"has {len(key.encode())} bytes; an audit key has {AUDIT_KEY_BYTES_MIN} to {AUDIT_KEY_BYTES_MAX}: "
            "openssl rand -hex 32 makes one"
        )


def _check_token(token: str) -> None:
    if not re.fullmatch(r"[\x21-\x7e]{8,512}", token):
        raise ValueError("is no bearer token; use 8 to 512 visible ASCII characters: openssl rand -hex 32 makes one")


def _check_data(data: str) -> None:
    if not data:
        raise ValueError("is empty; name a directory")
    if Path(data).exists() and not Path(data).is_dir():
        raise ValueError("is not a directory; name a directory, nova makes it if it is missing")


def _check_kinds(kinds: dict[str, str]) -> None:
    from nova.store.kinds import KINDS  # here and below: most configurations need neither, and both cost a start

    for prefix, kind in kinds.items():
        if kind not in KINDS:
            raise ValueError(f'gives "{prefix}" the kind "{kind}"; {_choice(kind, KINDS)}')


def _check_strategies(strategies: dict[str, str]) -> None:
    from nova.conflict.strategies import known_strategies

    known = known_strategies() if strategies else ()
    for prefix, strategy in strategies.items():
        if strategy not in known:
            raise ValueError(f'gives "{prefix}" the strategy "{strategy}"; {_choice(strategy, known)}')


def store_config(config: NodeConfig) -> StoreConfig:
    """What the store of a node is told. Raises ConfigError."""
    from nova.conflict.semantics import SemanticRule
    from nova.store.core import StoreConfig
    from nova.store.invariants import StoreInvariant

    return StoreConfig(
        kinds=config.kinds,
        strategies=config.strategies,
        policies={"": read_policy(config.policy)} if config.policy else {},
        invariants=declared(config.invariants, StoreInvariant),
        semantics=declared(config.semantics, SemanticRule),
        voters=tuple(config.voters),
        vote_timeout_ms=config.vote_timeout_ms,
        vote_otherwise=config.vote_otherwise,
        escalate=tuple(config.escalate),
        escalate_ms=config.escalate_ms,
        audit_key=(config.audit_key or "").encode(),
        key_bytes_max=config.limits.key_bytes_max,
        value_bytes_max=config.limits.value_bytes_max,
        history_bytes=config.limits.history_bytes,
    )


_Declared = TypeVar("_Declared")


def declared(tables: list[dict[str, Any]], type_: type[_Declared]) -> tuple[_Declared, ...]:
    """The tables of a configuration as declarations of a type. Raises ConfigError."""
    out = []
    for number, table in enumerate(tables, 1):
        try:
            out.append(msgspec.convert(table, type_))
        except (msgspec.ValidationError, ConfigError) as error:
            raise ConfigError(f"number {number}: {error}") from None
    return tuple(out)


def _check_invariants(tables: list[dict[str, Any]]) -> None:
    from nova.store.invariants import StoreInvariant

    try:
        declared(tables, StoreInvariant)
    except ConfigError as error:
        raise ValueError(f"does not declare a truth about keys: {error}") from None


def _check_semantics(tables: list[dict[str, Any]]) -> None:
    from nova.conflict.semantics import SemanticRule

    try:
        declared(tables, SemanticRule)
    except ConfigError as error:
        raise ValueError(f"does not declare a rule: {error}") from None


def _check_voters(voters: list[str]) -> None:
    for voter in voters:
        _check_name(voter)
    if len(set(voters)) < len(voters):
        raise ValueError("names a voter twice; each has one vote")


def _check_otherwise(strategy: str) -> None:
    from nova.conflict.strategies import known_strategies

    if strategy not in (known := known_strategies()):
        raise ValueError(f'is "{strategy}"; {_choice(strategy, known)}')


def _check_escalate(levels: list[str]) -> None:
    if len(levels) > 16 or any(not 1 <= len(level) <= 256 for level in levels):
        raise ValueError("names over 16 levels, or one of 0 or over 256 characters; shorten it")


def _check_policy(policy: str) -> None:
    try:
        read_policy(policy)
    except ConfigError as error:
        raise ValueError(f"is no policy: {error}") from None


def read_policy(file: str) -> Policy:
    """The policy of a TOML file. Raises ConfigError with file, line and mend."""
    from nova.conflict.policy import policy_from_toml

    return policy_from_toml(read_text(file), file)


def read_text(file: str | os.PathLike[str]) -> str:
    """A file of UTF-8. Raises ConfigError."""
    try:
        return Path(file).read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(f"{file}: there is no such file; name one that exists") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); make it readable for this user") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from None


def _check_sync(sync: str) -> None:
    if sync not in ("", "auto", "datacenter", "internet", "hybrid"):
        raise ValueError("is no mode; use auto, datacenter, internet or hybrid, or leave it out")


def _check_delays(delays: dict[str, float]) -> None:
    for region, delay in delays.items():
        if not 0 <= delay <= 10_000:
            raise ValueError(f'gives "{region}" {delay:g} ms; delays lie between 0 and 10000 ms')


def _between(least: int, most: int) -> Callable[[int], None]:
    def check(value: int) -> None:
        if not least <= value <= most:
            raise ValueError(f"is out of range; it must lie between {least} and {most}")

    return check


def _check_address(address: str) -> None:
    split_address(address)


KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_CHECKS: dict[str, Callable[[Any], None]] = {
    "name": _check_name,
    "region": _check_name,
    "cluster": _check_name,
    "listen": _check_address,
    "http": _check_address,
    "data": _check_data,
    "join": _check_join,
    "key": _check_key,
    "token": _check_token,
    "audit_key": _check_audit_key,
    "kinds": _check_kinds,
    "strategies": _check_strategies,
    "policy": _check_policy,
    "invariants": _check_invariants,
    "semantics": _check_semantics,
    "voters": _check_voters,
    "vote_timeout_ms": _between(0, 86_400_000),
    "vote_otherwise": _check_otherwise,
    "escalate": _check_escalate,
    "escalate_ms": _between(1_000, 30 * 86_400_000),
    "link_delay_ms": _check_delays,
    "classes": group_config.check_classes,
    "sync": _check_sync,
    "transport": check_engine,
    "tls.check_ms": _between(100, 3_600_000),
    "tls.warn_days": _between(0, 3_650),
    "consensus.members": group_config.check_members,
    "consensus.listen": group_config.check_listen,
    "consensus.protocol": group_config.check_protocol,
    "consensus.policy": group_config.check_policy,
    "consensus.tick_ms": _between(1, 1_000),
    "consensus.timeout_ms": _between(10, 600_000),
    "consensus.bytes_max": _between(MIB, 16 * GIB),
    "hybrid.members": region_config.check_members,
    "hybrid.regions": region_config.check_regions,
    "hybrid.listen": group_config.check_listen,
    "hybrid.tick_ms": _between(1, 1_000),
    "hybrid.timeout_ms": _between(10, 600_000),
    "hybrid.bytes_max": _between(MIB, 16 * GIB),
    "limits.body_bytes_max": _between(KIB, 64 * MIB),
    "limits.value_bytes_max": _between(1, 16 * MIB),
    "limits.key_bytes_max": _between(16, 64 * KIB),
    "limits.history_bytes": _between(MIB, 64 * GIB),
    "limits.segment_bytes": _between(MIB, 4 * GIB),
    "limits.snapshot_log_bytes": _between(MIB, 1024 * GIB),
    "limits.checkpoint_ms": _between(0, 30 * 86_400_000),
    "limits.checkpoints_kept": _between(1, 1_000),
    "limits.audit_days": _between(0, 36_500),
    "limits.audit_events": _between(0, 10**12),
    "gossip.round_ms": _between(10, 10_000),
    "gossip.push_pull_ms": _between(10, 3_600_000),
    "gossip.probe_ms": _between(10, 600_000),
    "gossip.probe_timeout_ms": _between(5, 600_000),
    "gossip.suspicion_ms": _between(10, 3_600_000),
    "gossip.anti_entropy_ms": _between(10, 3_600_000),
}


def _check_whole(config: NodeConfig, settings: Mapping[str, _Setting]) -> None:
    """What no setting can say alone."""
    limits, gossip = config.limits, config.gossip
    if config.listen == config.http and split_address(config.http)[1]:
        raise _whole(settings, "http", f"listen and http are both {config.http}; give them different ports")
    if limits.value_bytes_max > limits.body_bytes_max:
        raise _whole(
            settings,
            "limits.value_bytes_max",
            f"limits.value_bytes_max {limits.value_bytes_max} is over limits.body_bytes_max {limits.body_bytes_max}, "
            "so no such value could arrive; lower the one or raise the other",
        )
    if gossip.probe_timeout_ms >= gossip.probe_ms:
        raise _whole(
            settings,
            "gossip.probe_timeout_ms",
            f"gossip.probe_timeout_ms {gossip.probe_timeout_ms} must be below gossip.probe_ms {gossip.probe_ms}",
        )
    if (found := group_config.wrong(config) or region_config.wrong(config) or tls_config.wrong(config)) is not None:
        raise _whole(settings, *found)
    # With certificates peers need no key. The API needs its token all the same: certificates say who, not whether.
    needed = ("token",) if config.tls.on else ("key", "token")
    if not config.insecure and not all(getattr(config, secret) for secret in needed):
        missing = " and ".join(secret for secret in needed if not getattr(config, secret))
        for name in ("listen", "http"):
            address = getattr(config, name)
            if not is_loopback(address):
                raise _whole(
                    settings,
                    name,
                    f"{name} {address} can be reached from other machines, but there is no {missing}; "
                    "set key (or key_file, or --tls) and token (or token_file), or allow it with --insecure",
                )


def _whole(settings: Mapping[str, _Setting], name: str, problem: str) -> ConfigError:
    place = settings[name].place if name in settings else "configuration"
    return ConfigError(f"{place}: {problem}")


def _read_secrets(settings: dict[str, _Setting]) -> None:
    """Put what key_file, token_file and audit_key_file hold where key, token and audit_key stand."""
    for secret in SECRETS:
        if (source := settings.get(f"{secret}_file")) is None:
            continue
        try:
            text = Path(source.value).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise source.error(f"{source.shown} cannot be read ({reason}); name a readable text file") from None
        settings[secret] = _Setting(secret, text, source.place, f"what {source.shown} holds")


# --- words ------------------------------------------------------------------------------------------------------------


def _host_name() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("-._")[:63] or "node"


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    leaf = name.rpartition(".")[2]
    near = difflib.get_close_matches(name, known, 1, 0.6) or [
        other for other in known if other.rpartition(".")[2] == leaf
    ]
    mend = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}"
    return f"{name} is no setting of nova; {mend}"


def _choice(value: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, known, 1, 0.6)
    return f'did you mean "{near[0]}"?' if near else f"use one of {', '.join(known)}"


def _line_of(text: str, name: str) -> int | None:
    """The line that sets `name` (``table.leaf``), if it is written the plain way."""
    table, _, leaf = name.rpartition(".")
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
            current = header[1].strip("\"'")
            if current == name:
                return number
        elif (assigned := re.match(r"\s*([\w\"'.-]+?)\s*=", line)) and not current.startswith("["):
            written = assigned[1].strip("\"'")
            if (current == table and written == leaf) or (not current and written in (name, table)):
                return number
    return None


def _noun(value: Any) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"


def _shown(leaf: str, value: Any) -> str:
    """The value for a message; secrets never show."""
    text = "***" if leaf in SECRETS else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _toml(leaf: str, value: Any) -> str:
    shown = _shown(leaf, str(value).lower() if isinstance(value, bool) else value)
    return f'"{shown}"' if isinstance(value, str) else shown

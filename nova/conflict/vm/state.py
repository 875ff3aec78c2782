"""Virtual machines: their typed state, the leaves it is kept in, and what becomes of a leaf that two writers changed.

A VM is kept as leaves, so that writers of different parts do not conflict:

    /power_state /cpu /host ...   one leaf per field, unknown ones included
    /migration                    status, target and epoch belong together: one leaf
    /networks/{mac}               a NIC, its MAC and IP belong together
    /disks/{id} /snapshots/{id}   one leaf each
    /tags/{tag}                   true
    /labels/{name} /metrics/{name}

Keys are escaped as in RFC 6901. Fields of a VM that are not named here are kept and go round unchanged; unknown fields
inside a NIC, disk, snapshot or migration are refused, because there a typing error would be lost in a merge.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from nova.conflict.detect import MISSING, escape, same, unescape
from nova.conflict.strategies import show
from nova.errors import UsageError

# ------------------------------------------------------------------------------------------------ types

PowerState = Literal["running", "paused", "suspended", "stopped"]
POWER_RANK: Final = {"stopped": 0, "suspended": 1, "paused": 2, "running": 3}

MigrationStatus = Literal["planned", "preparing", "running", "switchover", "cancelled", "failed", "completed"]
MIGRATION_RANK: Final = {"planned": 0, "preparing": 1, "running": 2, "switchover": 3}
"""Migrations under way, in the order of their states; the others have ended."""
ENDED_RANK: Final = {"cancelled": 0, "failed": 1, "completed": 2}

CPU_MAX: Final = 4096
MEMORY_MB_MAX: Final = 1 << 28
KEY_CHARS_MAX: Final = 255

Key = Annotated[str, Meta(min_length=1, max_length=KEY_CHARS_MAX)]
Cpu = Annotated[int, Meta(ge=1, le=CPU_MAX)]
MemoryMb = Annotated[int, Meta(ge=1, le=MEMORY_MB_MAX)]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Size = Annotated[float, Meta(ge=0)]


class Nic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network interface. `network` names the address space that `ip` is unique in; "" is the common one."""

    mac: Key
    ip: str | None = None
    network: str = ""
    model: str = ""
    vlan: Annotated[int, Meta(ge=0, le=4094)] | None = None
    bandwidth_mbps: Size | None = None


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk. It may grow, never shrink."""

    id: Key
    size_gb: Size = 0
    path: str = ""
    format: str = ""
    pool: str = ""
    bus: str = ""
    read_only: bool = False


class Snapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A snapshot; `parent` is the id of the one it builds on."""

    id: Key
    parent: str | None = None
    created_ms: Count = 0
    name: str = ""
    size_gb: Size | None = None


class Migration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A move to another host. Every new attempt counts `epoch` up."""

    status: MigrationStatus
    target: str | None = None
    epoch: Count = 0
    source: str | None = None
    progress: Annotated[float, Meta(ge=0, le=1)] | None = None


class _Shape(msgspec.Struct, frozen=True):
    """What the known fields of a VM must look like, each of them optional: whole values and parts are held to it."""

    id: Key | UnsetType = UNSET
    name: str | UnsetType = UNSET
    power_state: PowerState | UnsetType = UNSET
    cpu: Cpu | UnsetType = UNSET
    memory_mb: MemoryMb | UnsetType = UNSET
    host: str | UnsetType | None = UNSET
    region: str | UnsetType | None = UNSET
    networks: list[Nic] | UnsetType = UNSET
    disks: list[Disk] | UnsetType = UNSET
    snapshots: list[Snapshot] | UnsetType = UNSET
    migration: Migration | UnsetType | None = UNSET
    tags: list[Key] | UnsetType = UNSET
    labels: dict[Key, str] | UnsetType = UNSET
    metrics: dict[Key, float] | UnsetType = UNSET
    owner: str | UnsetType | None = UNSET
    updated_ms: Count | UnsetType = UNSET
    fencing_token: Count | UnsetType = UNSET


class VMState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a virtual machine. Always valid: a wrong field raises UsageError where the object is made.

    metrics     name -> last measured value, for instance `cpu_mhz`
    updated_ms  when the source of the data measured or changed it, Unix time
    fencing_token  under which it was started; a newer one keeps an older one out. 0: none
    extra       fields that this class does not know, kept as they are
    """

    id: str
    name: str = ""
    power_state: PowerState = "stopped"
    cpu: int = 1
    memory_mb: int = 1024
    host: str | None = None
    region: str | None = None
    networks: tuple[Nic, ...] = ()
    disks: tuple[Disk, ...] = ()
    snapshots: tuple[Snapshot, ...] = ()
    migration: Migration | None = None
    tags: frozenset[str] = frozenset()
    labels: dict[str, str] = {}
    metrics: dict[str, float] = {}
    owner: str | None = None
    updated_ms: int = 0
    fencing_token: int = 0
    extra: dict[str, Any] = {}

    def __post_init__(self) -> None:
        validate(self.to_dict())

    @classmethod
    def of(cls, vm: Mapping[str, Any]) -> VMState:
        """From the plain form. Raises UsageError that names the field, its value, the limit and the mend."""
        if "id" not in vm:
            raise UsageError("vm has no field id; give the id that its key is made of")
        plain = join(split(vm))
        known = {name: plain[name] for name in FIELDS if name in plain}
        extra = {name: value for name, value in plain.items() if name not in FIELDS}
        return msgspec.convert({**known, "extra": extra}, cls)

    def to_dict(self) -> dict[str, Any]:
        """The plain form, as in JSON: what `put` takes and `split` splits. Empty collections are left out."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        extra: dict[str, Any] = plain.pop("extra")
        for name in ITEM_KEYS:
            plain[name] = [{k: v for k, v in item.items() if v is not None and v != ""} for item in plain[name]]
        if plain["migration"] is not None:
            plain["migration"] = {k: v for k, v in plain["migration"].items() if v is not None}
        plain["tags"] = sorted(plain["tags"])
        kept: dict[str, Any] = {name: plain[name] for name in plain if name not in COLLECTIONS or plain[name]}
        return kept | extra


FIELDS: Final = frozenset(_Shape.__struct_fields__)
ITEM_KEYS: Final = {"networks": "mac", "disks": "id", "snapshots": "id"}
"""Collections of objects, and the field that names an object in its path."""
PLACES: Final = ("/host", "/region")
_MAPS: Final = ("labels", "metrics")
COLLECTIONS: Final = frozenset((*ITEM_KEYS, "tags", *_MAPS))

# ------------------------------------------------------------------------------------------------ validation

_MEND: Final = {
    "id": f"give 1 to {KEY_CHARS_MAX} characters",
    "power_state": f"use one of {', '.join(sorted(POWER_RANK, key=POWER_RANK.__getitem__, reverse=True))}",
    "cpu": f"give a whole number from 1 to {CPU_MAX}",
    "memory_mb": f"give a whole number of MiB from 1 to {MEMORY_MB_MAX}",
    "networks": "give a list of objects with mac, ip, network",
    "disks": "give a list of objects with id, size_gb, path",
    "snapshots": "give a list of objects with id, parent, created_ms",
    "migration": f"give an object with status ({', '.join((*MIGRATION_RANK, *ENDED_RANK))}), target, epoch, or null",
    "tags": "give a list of texts",
    "labels": "give an object of texts",
    "metrics": "give an object of numbers",
    "updated_ms": "give Unix milliseconds",
    "fencing_token": "give a whole number, greater than every one given before",
}
_WHERE: Final = re.compile(r" - at `\$\.?([^`]*)`$")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)


def validate(vm: Mapping[str, Any]) -> None:
    """Check the known fields of a VM, or of a part of one. Raises UsageError."""
    try:
        msgspec.convert(vm, _Shape)
    except msgspec.ValidationError as error:
        raise _refusal(vm, str(error)) from None


def _refusal(vm: Mapping[str, Any], message: str) -> UsageError:
    found = _WHERE.search(message)
    if found is None:
        return UsageError(f"vm is {show(vm)}: {message}; give an object of fields")
    where = found.group(1)
    field = re.split(r"[.\[]", where, maxsplit=1)[0]
    value: Any = vm.get(field, MISSING)
    if "[...]" in where:  # a key or value of an object: msgspec does not tell which
        where = field
    for name, index in re.findall(r"\.([^.\[]+)|\[(\d+)\]", where[len(field) :]):
        if name and isinstance(value, Mapping):
            value = value.get(name, MISSING)
        elif index and isinstance(value, list | tuple):
            value = value[int(index)]
    mend = _MEND.get(field, "give a text or null")
    return UsageError(f"vm field {where} is {show(value)}: {message[: found.start()]}; {mend}")


def canonical_mac(mac: str) -> str:
    """Six octets in lower case with colons. Raises UsageError."""
    text = mac.lower().replace("-", ":")
    if _MAC.fullmatch(text) is None:
        raise UsageError(f"mac of a vm's network is {show(mac)}; give six octets such as 52:54:00:12:34:56")
    return text


def canonical_ip(ip: str) -> str:
    """The one short form of an IPv4 or IPv6 address. Raises UsageError."""
    try:
        return str(ip_address(ip))
    except ValueError:
        raise UsageError(f"ip of a vm's network is {show(ip)}; give an address such as 10.0.0.1 or fd00::1") from None


def _nic_leaf(item: Mapping[str, Any]) -> dict[str, Any]:
    leaf = dict(item)
    leaf["mac"] = canonical_mac(leaf["mac"])
    if leaf.get("ip") is not None:
        leaf["ip"] = canonical_ip(leaf["ip"])
    return leaf


# ------------------------------------------------------------------------------------------------ leaves


def split(vm: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a VM, path -> value. Raises UsageError if a known field is wrong or a list names one id twice.

    An empty collection has no leaves, so `join(split(vm))` is the canonical form of `vm`: collections sorted by id and
    left out when empty, tags once each, MAC and IP addresses in their one form.
    """
    validate(vm)
    leaves = _leaves(vm)
    if not leaves:
        raise UsageError("vm has 0 fields; give at least its id")
    return leaves


def canonical_state(vm: Mapping[str, Any]) -> dict[str, Any]:
    """`join(split(vm))`, its fields sorted, without making leaves. Raises UsageError."""
    validate(vm)
    out = {
        name: _canonical_collection(name, value) if name in COLLECTIONS else value
        for name, value in sorted(vm.items())
        if value or name not in COLLECTIONS
    }
    if not out:
        raise UsageError("vm has 0 fields; give at least its id")
    return out


def _canonical_collection(name: str, value: Any) -> Any:
    if name in ITEM_KEYS:
        items = _items(name, value)
        return [items[id] for id in sorted(items, key=escape)]
    return sorted(set(value), key=escape) if name == "tags" else {key: value[key] for key in sorted(value)}


def _leaves(vm: Mapping[str, Any]) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in vm.items():
        if name in COLLECTIONS:
            _split_collection(name, value, leaves)
        else:
            leaves["/" + escape(name)] = value
    return leaves


def _split_collection(name: str, value: Any, leaves: dict[str, Any]) -> None:
    if name in ITEM_KEYS:
        for id, item in _items(name, value).items():
            leaves[f"/{name}/{escape(id)}"] = item
    elif name == "tags":
        for tag in value:
            leaves[f"/tags/{escape(tag)}"] = True
    else:
        for key, item in value.items():
            leaves[f"/{name}/{escape(key)}"] = item


def _items(name: str, value: Any) -> dict[str, dict[str, Any]]:
    """Networks, disks or snapshots by their ids."""
    key_field, items = ITEM_KEYS[name], {}
    for item in value:
        leaf = _nic_leaf(item) if name == "networks" else dict(item)
        id = leaf[key_field]
        if id in items:
            raise UsageError(f"vm field {name} names {show(id)} 2 times; an id may stand there once")
        items[id] = leaf
    return items


def split_patch(patch: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What a merge write (RFC 7396) puts and which paths it drops, given the current leaves.

    null removes a field. In `labels`, `metrics` and, by id, in `networks`, `disks`, `snapshots` an object changes the
    parts it names and null removes one; `tags` take {tag: true | null}. A list replaces its whole collection.
    `migration` is one leaf and replaced as a whole. What is named is written, even if it stands there already: its
    writer means it, and one who changes it elsewhere at the same time has a conflict with him. Only in a list, which
    names everything, leaves that stay as they are are not written.
    """
    puts: dict[str, Any] = {}
    drops: list[str] = []
    for name, value in patch.items():
        path = "/" + escape(name)
        if name not in COLLECTIONS:
            if value is None:
                drops.append(path)
            else:
                puts[path] = value
            continue
        present = [other for other in current if other.startswith(path + "/")]
        if value is None:
            drops += present
        elif isinstance(value, Mapping):
            _patch_items(name, value, current, puts, drops)
        else:
            leaves: dict[str, Any] = {}
            validate({name: value})
            _split_collection(name, value, leaves)
            puts |= {p: leaf for p, leaf in leaves.items() if p not in current or not same(current[p], leaf)}
            drops += [other for other in present if other not in leaves]
    validate({name: value for name, value in patch.items() if name not in COLLECTIONS and value is not None})
    return puts, [path for path in drops if path in current and path not in puts]


def placed(puts: Mapping[str, Any], drops: Collection[str], seen: Mapping[str, Any]) -> dict[str, Any]:
    """What to write with the start or the move of a VM, so that two who did not know of each other and ran it at two
    places can be told from one who only moved it: leaves that the writer saw, as he saw them.

    puts, drops  what he writes
    seen         the uncontended leaves that he saw

    Who starts it names the place where it is. Who moves one that runs names it, by its id, with the new place: its
    power state he must not, or a concurrent stop would be a conflict with him.
    """
    ran = seen.get("/power_state") == "running"
    if "/power_state" not in puts:
        moves = ran and any(path in puts for path in PLACES)
        return {"/id": seen["/id"]} if moves and "/id" in seen and "/id" not in puts else {}
    if ran or puts["/power_state"] != "running":
        return {}
    return {path: seen[path] for path in PLACES if path not in puts and path not in drops and seen.get(path)}


def _patch_items(
    name: str, change: Mapping[str, Any], current: Mapping[str, Any], puts: dict[str, Any], drops: list[str]
) -> None:
    key_field = ITEM_KEYS.get(name)
    for key, item in change.items():
        if name == "networks":
            key = canonical_mac(key)
        path = f"/{name}/{escape(key)}"
        if item is None or (name == "tags" and item is False):
            drops.append(path)
            continue
        leaf = item
        if name == "tags":
            if item is not True:
                raise UsageError(f"vm tag {show(key)} is {show(item)}; true adds a tag, null removes it")
            validate({"tags": [key]})
        elif key_field is None:
            validate({name: {key: item}})
        else:
            if not isinstance(item, Mapping):
                raise UsageError(f"vm field {name}/{key} is {show(item)}; {_MEND[name]}, by id")
            merged = {**current.get(path, {}), **item}
            leaf = {field: part for field, part in merged.items() if part is not None} | {key_field: key}
            if item.get(key_field, key) != key and not (name == "networks" and canonical_mac(item["mac"]) == key):
                raise UsageError(f"vm field {name}/{key} has {key_field} {show(item[key_field])}; an id cannot change")
            validate({name: [leaf]})
            if name == "networks":
                leaf = _nic_leaf(leaf)
        puts[path] = leaf


def join(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The VM that these leaves make; the inverse of `split`. Raises UsageError for a path that no VM has."""
    out: dict[str, Any] = {}
    for path in sorted(leaves):
        empty, *rest = path.split("/")
        if empty or not rest or len(rest) != 1 + (rest[0] in COLLECTIONS):
            raise UsageError(f"path {path!r} is none of a vm; paths are /field or /collection/id")
        field = rest[0]
        if len(rest) == 1:
            out[unescape(field)] = leaves[path]
        elif field in ITEM_KEYS:
            out.setdefault(field, []).append(leaves[path])
        elif field == "tags":
            out.setdefault(field, []).append(unescape(rest[1]))
        else:
            out.setdefault(field, {})[unescape(rest[1])] = leaves[path]
    return out


def resources(leaves: Mapping[str, Any]) -> set[str]:
    """What this VM claims for itself alone: `mac:...`, and `ip:...`, or `ip:...@network` inside a named network."""
    found = set()
    for path, nic in leaves.items():
        if not path.startswith("/networks/") or nic is MISSING:
            continue
        found.add(f"mac:{nic['mac']}")
        if nic.get("ip") is not None:
            network = nic.get("network")
            found.add(f"ip:{nic['ip']}@{network}" if network else f"ip:{nic['ip']}")
    return found

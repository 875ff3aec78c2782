"""The routes of strong keys and of their group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import Request, Response, delete, get, post
from litestar.params import FromPath, JSONBody
from msgspec import UNSET

from nova.errors import StaleContextError, UsageError
from nova.server.answers import answer, conflict, entry_json, key_in
from nova.server.described import described
from nova.server.models import (
    AddMember,
    AddToRegion,
    Check,
    GroupStatus,
    HybridStatus,
    Step,
    SwitchTo,
    Transaction,
    TransactionDone,
    TransferTo,
    encode,
)
from nova.store.strong.commands import (
    Add,
    Condition,
    Exists,
    Operation,
    Read,
    Remove,
    ValueIs,
    VersionIs,
    Write,
    packed,
)

if TYPE_CHECKING:
    from nova.server.api import Api


def strong_routes(api: Api) -> list[Any]:
    """What a node answers besides; without a group each says so."""
    backend = api.backend

    @post(
        "/v1/transact/{key:path}",
        operation_id="transact",
        **described("Carry out operations on one strong key, all or none.", TransactionDone, 400, 409, 413, 503),
    )
    async def transact(
        key: FromPath[str], data: JSONBody[Transaction], request: Request[Any, Any, Any]
    ) -> Response[bytes]:
        key = key_in(request.scope, "/v1/transact/")
        api.check_key(key)
        for value in (*(check.value for check in data.if_), *(step.put for step in data.do)):
            api.check_value(value, api.config.limits.body_bytes_max)
        conditions = [_condition(at, check) for at, check in enumerate(data.if_, 1)]
        operations = [_operation(at, step) for at, step in enumerate(data.do, 1)]
        try:
            done = await backend.transact(key, conditions, operations)
        except StaleContextError as error:
            raise conflict(error, None, None) from None
        entry = b"null" if done.entry is None else entry_json(done.entry)
        return answer(b'{"entry":%b,"results":%b,"revision":%d}' % (entry, encode(done.results), done.revision))

    @get(
        "/v1/consensus",
        operation_id="consensus",
        **described("The group of the strong keys, as this node sees it.", GroupStatus, 400),
    )
    async def consensus() -> Response[bytes]:
        return answer(encode(backend.consensus()))

    @post(
        "/v1/consensus/members",
        operation_id="addMember",
        **described("Let a node learn, then vote. Ask the leader.", GroupStatus, 400, 503),
    )
    async def add_member(data: JSONBody[AddMember]) -> Response[bytes]:
        return answer(encode(await backend.consensus_add(data.node, data.address, data.learner)))

    @delete(
        "/v1/consensus/members/{node:str}",
        operation_id="removeMember",
        **described("Take a member out of the group. Ask the leader.", GroupStatus, 400, 503),
    )
    async def remove_member(node: FromPath[str]) -> Response[bytes]:
        return answer(encode(await backend.consensus_remove(node)))

    @post(
        "/v1/consensus/transfer",
        operation_id="transferLeadership",
        **described("Hand leadership to a voter. Ask the leader.", GroupStatus, 400, 503),
    )
    async def transfer(data: JSONBody[TransferTo]) -> Response[bytes]:
        return answer(encode(await backend.consensus_transfer(data.node)))

    @post(
        "/v1/consensus/switch",
        operation_id="switchProtocol",
        **described("Go on with another protocol, or among other members.", GroupStatus, 400, 503),
    )
    async def switch(data: JSONBody[SwitchTo]) -> Response[bytes]:
        return answer(encode(await backend.consensus_switch(data.protocol, data.members, data.addresses)))

    @post(
        "/v1/regions/{region:str}/members",
        operation_id="addToRegion",
        **described("Let a node keep hybrid keys, and vote in a region.", HybridStatus, 400, 503),
    )
    async def add_to_region(region: FromPath[str], data: JSONBody[AddToRegion]) -> Response[bytes]:
        return answer(encode(await backend.region_add(data.node, data.address, region)))

    @delete(
        "/v1/regions/{region:str}/members/{node:str}",
        operation_id="removeFromRegion",
        **described("Take a member of a region out.", HybridStatus, 400, 503),
    )
    async def remove_from_region(region: FromPath[str], node: FromPath[str]) -> Response[bytes]:
        return answer(encode(await backend.region_remove(node, region)))

    return [
        transact, consensus, add_member, remove_member, transfer, switch, add_to_region, remove_from_region,
    ]  # fmt: skip


def _condition(at: int, check: Check) -> Condition:
    match _given("if", at, check):
        case "version":
            assert isinstance(check.version, int)
            return VersionIs(check.version)
        case "value":
            return ValueIs(packed(check.value))
        case _:
            if check.exists is not True:
                raise UsageError(f"if, number {at}: exists is false; a key that holds nothing has version 0")
            return Exists()


def _operation(at: int, step: Step) -> Operation:
    match _given("do", at, step):
        case "put":
            return Write(packed(step.put))
        case "add":
            assert isinstance(step.add, int | float)
            return Add(step.add)
        case name:
            if getattr(step, name) is not True:
                raise UsageError(f"do, number {at}: {name} is false; leave it out")
            return Remove() if name == "delete" else Read()


def _given(what: str, at: int, fields: Check | Step) -> str:
    """The one field that is there."""
    given = [name for name in fields.__struct_fields__ if getattr(fields, name) is not UNSET]
    if len(given) != 1:
        raise UsageError(
            f"{what}, number {at}, has {len(given)} of {', '.join(fields.__struct_fields__)}; give exactly one"
        )
    return given[0]


__all__ = ["strong_routes"]

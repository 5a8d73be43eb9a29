"""Kill -9 of KeyVault in the middle of an erasure: no secret stays, and no key is revoked twice or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from typing import TYPE_CHECKING

import asyncpg
import grpc
import pytest

from byok.keyvault.v1 import key_service_pb2, provider_key_pb2
from byok.type.v1 import account_pb2
from servicekit.clock import SystemClock
from servicekit.ids import new_uuid7
from servicekit.wire import error_from_rpc
from testkit.settings import TestkitSettings
from testkit.stack.customer import Suite
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.chaos

_ROUNDS = TestkitSettings().chaos_rounds
_KEYS = 90
# An erasure of so many keys takes about a quarter of a second.
_KILL_WITHIN_SECONDS = 0.25
_ERASED = key_service_pb2.ERASURE_STATE_ERASED
_WORKERS_OFTEN = {"BYOK_KEYVAULT_HEALTH__INTERVAL": "0.5"}


def _new_id() -> str:
    return new_uuid7(SystemClock().now())


async def _add_keys(suite: Suite, owner: account_pb2.Principal) -> None:
    for number in range(_KEYS):
        await suite.keys.CreateKey(
            key_service_pb2.CreateKeyRequest(
                request_id=_new_id(),
                acting_for=owner,
                actor="test",
                scope=provider_key_pb2.KEY_SCOPE_OWNER,
                provider="anthropic",
                plaintext=b"sk-ant-api03-%d-canary-0123456789abcdefghijklmnop" % number,
            )
        )


async def _state(suite: Suite, request: key_service_pb2.EraseOwnerRequest) -> int:
    """Return how far the erasure has come; where none was begun, ask again as the caller would."""
    look = key_service_pb2.GetErasureRequest(acting_for=request.acting_for, owner_id=request.owner_id)
    try:
        return (await suite.keys.GetErasure(look)).erasure.state
    except grpc.aio.AioRpcError as error:
        if error_from_rpc(error).reason != "ERASURE_NOT_FOUND":
            return 0
    return (await suite.keys.EraseOwner(request)).erasure.state


async def _rows(stack: Stack, owner_id: str) -> tuple[int, int, int]:
    """Return how many secrets an owner has, how many of the keys are revoked, and how often one was revoked."""
    connection = await asyncpg.connect(stack.keyvault_dsn)
    try:
        (row,) = await connection.fetch(
            "SELECT (SELECT count(*) FROM agent_ai_key_secrets s JOIN agent_ai_keys k USING (provider_key_id) "
            "WHERE k.owner_id = $1), count(*) FILTER (WHERE state = 7 AND superseded_index IS NULL), "
            "count(*) FILTER (WHERE state = 7) FROM agent_ai_keys WHERE owner_id = $1",
            owner_id,
        )
    finally:
        await connection.close()
    return row[0], row[1], row[2]


async def test_an_erasure_that_is_killed_is_finished(tmp_path: Path) -> None:
    """Whenever it is killed: what was begun is finished by a worker, what was not is begun by repeating the request."""
    options = StackOptions(is_durable=False, is_kept=False, environment=_WORKERS_OFTEN)
    async with Stack(tmp_path / "stack", options=options) as stack, Suite(stack) as suite:
        for _ in range(_ROUNDS):
            owner_id = f"owner-{uuid.uuid4().hex[:12]}"
            owner = account_pb2.Principal(owner_id=owner_id)
            await _add_keys(suite, owner)
            request = key_service_pb2.EraseOwnerRequest(
                request_id=_new_id(), acting_for=owner, actor="test", owner_id=owner_id
            )
            erasing = asyncio.ensure_future(suite.keys.EraseOwner(request))
            await asyncio.sleep(random.uniform(0, _KILL_WITHIN_SECONDS))
            stack.kill9("keyvault")
            with contextlib.suppress(grpc.aio.AioRpcError):
                await erasing
            secrets, revoked, _ = await _rows(stack, owner_id)
            # Before anything is revoked, everything is destroyed: there is no state in between.
            assert secrets == (0 if revoked else secrets)
            assert secrets in (0, _KEYS)
            await stack.start_again("keyvault")
            await eventually(lambda request=request: _state(suite, request), lambda state: state == _ERASED)  # type: ignore[misc]  # defaults bind
            assert await _rows(stack, owner_id) == (0, _KEYS, _KEYS)

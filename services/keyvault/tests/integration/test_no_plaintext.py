"""The canary: whatever happens, no secret is in a log, a metric, an error or a page of the database."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
import structlog

from byok.keyvault.v1 import key_service_pb2
from servicekit.telemetry import configure_logging
from services.keyvault.tests.integration.vault import (
    SECRET,
    agent_item,
    create_request,
    new_id,
    owner,
    revoke_request,
    validation_item,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from services.keyvault.tests.integration.vault import Vault

CANARY = SECRET + b"-leak"


@pytest.fixture
def log() -> Iterator[io.BytesIO]:
    """Return what is logged, at the most talkative level."""
    stream = io.BytesIO()
    before = structlog.get_config()
    configure_logging("keyvault", level="debug", stream=stream, is_final=False)
    yield stream
    structlog.configure(**before)


def shapes(secret: bytes) -> list[bytes]:
    """Return how a secret might be written down."""
    return [secret, base64.b64encode(secret)[:-4], secret.hex().encode(), secret[8:-8]]


async def test_the_canary_is_nowhere(start_vault: Callable[..., Awaitable[Vault]], log: io.BytesIO) -> None:
    """Success, refusal, corruption and a database that fails with the secret in its arguments."""
    vault = await start_vault()
    said: list[str] = []
    await _provoke(vault, said)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{vault.admin_port}/metrics") as response,
    ):
        metrics = await response.read()
    found = {
        "the log": log.getvalue(),
        "the metrics": metrics,
        "the errors": "\n".join(said).encode(),
        "the database": await _everything(vault),
    }
    for place, content in found.items():
        assert content, place
        for shape in shapes(CANARY):
            assert shape not in content, place


async def _provoke(vault: Vault, said: list[str]) -> None:
    keys, router = await vault.keys(), await vault.router()
    await vault.bind()
    created = await keys.CreateKey(create_request(plaintext=b" " + CANARY + b" "))
    key_id = created.key.key_id
    await router.acquire(validation_item(key_id))
    await router.validate(key_id)
    await router.acquire(agent_item())
    again: Any = create_request(plaintext=CANARY)
    await vault.forge("ALTER TABLE agent_ai_key_secrets ADD CHECK (key_version < 2)")
    calls = [
        keys.CreateKey(create_request(provider="openai", plaintext=CANARY)),
        keys.CreateKey(create_request(plaintext=CANARY + b"\x00")),
        keys.CreateKey(create_request(request_id=again.request_id, plaintext=CANARY, label="\x07")),
        keys.ReplaceKeySecret(
            key_service_pb2.ReplaceKeySecretRequest(
                request_id=new_id(), acting_for=owner(), actor="t", key_id=key_id, plaintext=CANARY
            )
        ),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        said.append(f"{caught.value.details()} {caught.value.trailing_metadata()}")
    await vault.forge("UPDATE agent_ai_key_secrets SET sealed_secret = substr(sealed_secret, 1, 99)")
    said.append(str(await router.acquire(agent_item())))
    await keys.RevokeKey(revoke_request(key_id))
    await asyncio.sleep(0)


async def _everything(vault: Vault) -> bytes:
    """Return every value of every table, bytes decoded."""
    tables = await vault.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    parts: list[bytes] = []
    for table in tables:
        rows = await vault.sql(f'SELECT * FROM "{table["tablename"]}"')
        values = [value for row in rows for value in row.values()]
        parts.extend(value if isinstance(value, bytes) else str(value).encode() for value in values)
    return b"\n".join(parts)

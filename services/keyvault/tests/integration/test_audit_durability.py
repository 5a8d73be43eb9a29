"""Fail-closed: what is not in the log does not happen, and what leaves is in the log before."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

import aiohttp
import asyncpg
import grpc
import pytest
from pydantic import SecretStr

from byok.keyvault.v1 import key_service_pb2, lease_service_pb2
from keyvault.app import _running
from keyvault.domain.audit_log import decode_leaf, leaf_hash
from keyvault.settings import PostgresSettings
from services.keyvault.tests.integration.test_watching import watching
from services.keyvault.tests.integration.vault import (
    SECRET,
    agent_item,
    create_request,
    owner,
    refusal,
    revoke_request,
)
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.keyvault.tests.integration.vault import Vault

BREAK_THE_LOG = """
CREATE FUNCTION break_the_log() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'disk full: sk-ant-canary' USING ERRCODE = 'disk_full'; END $$;
CREATE TRIGGER broken BEFORE INSERT ON audit_entries FOR EACH ROW EXECUTE FUNCTION break_the_log();
ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER broken;
"""


async def test_a_lease_is_in_the_log_when_it_is_answered(vault: Vault) -> None:
    """The entry names lease, key, version, agent, caller, process and the hash of its public key."""
    await vault.bind()
    key = await vault.working_key()
    router = await vault.router()
    lease = (await router.acquire(agent_item())).results[0].lease
    (row,) = await vault.sql("SELECT * FROM audit_entries WHERE audit_index = $1", lease.authority_index)
    entry = decode_leaf(row["leaf"])
    assert row["leaf_hash"] == leaf_hash(row["leaf"])
    assert (entry.provider_key_id, entry.key_version, entry.agent_id) == (key.key_id, 1, "agent-1")
    assert entry.caller == "spiffe://byok.local/ns/byok/sa/router"
    details = dict(entry.details)
    assert (details["lease_id"], details["operation"], details["holder"]) == (
        lease.lease_id,
        "GUARDRAIL_EVALUATION",
        router.holder,
    )
    assert len(bytes.fromhex(details["recipient"])) == 32


async def test_nothing_happens_when_the_log_cannot_be_written(vault: Vault) -> None:
    """Neither a lease, nor a new key, nor a binding, nor a revocation; the answer says to retry, and no more."""
    await vault.bind()
    key = await vault.working_key()
    keys, router = await vault.keys(), await vault.router()
    await vault.forge(BREAK_THE_LOG)
    calls = {
        "lease": router.acquire(agent_item()),
        "create": keys.CreateKey(create_request()),
        "bind": vault.bind("agent-2"),
        "revoke": keys.RevokeKey(revoke_request(key.key_id)),
    }
    for what, call in calls.items():
        error = await refusal(call)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE"), what
        assert "canary" not in str(error)
    await vault.forge("DROP TRIGGER broken ON audit_entries")
    listed = await keys.ListKeys(key_service_pb2.ListKeysRequest(acting_for=owner()))
    assert [each.key_id for each in listed.keys] == [key.key_id]
    assert (await router.acquire(agent_item())).results[0].lease.key_id == key.key_id
    assert (await router.acquire(agent_item("agent-2"))).results[0].HasField("error")


async def test_a_lease_that_waits_too_long_for_the_log_is_refused(
    start_vault: Callable[..., Awaitable[Vault]], migrated_dsn: str
) -> None:
    """A head that somebody holds ends in AUDIT_UNAVAILABLE within the statement's time, and then nothing hangs on."""
    vault = await start_vault(
        postgres=PostgresSettings(dsn=SecretStr(migrated_dsn), pool_max=4, statement_timeout="PT0.5S")  # type: ignore[arg-type]  # as text
    )
    await vault.bind()
    await vault.working_key()
    router = await vault.router()
    holder = await asyncpg.connect(migrated_dsn)
    async with holder.transaction():
        await holder.execute("SELECT 1 FROM audit_head FOR UPDATE")
        error = await refusal(router.acquire(agent_item()))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE")
    await holder.close()
    assert router.open(await router.acquire(agent_item()))[0].secret == SECRET


async def test_a_caller_with_less_time_than_a_statement_is_told_in_its_time(vault: Vault, migrated_dsn: str) -> None:
    """AUDIT_UNAVAILABLE comes before the caller gives up, not a time-out of its own."""
    await vault.bind()
    await vault.working_key()
    router = await vault.router()
    holder = await asyncpg.connect(migrated_dsn)
    async with holder.transaction():
        await holder.execute("SELECT 1 FROM audit_head FOR UPDATE")
        error = await refusal(router.leases.AcquireLeases(router.request(agent_item()), timeout=1))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE")
    await holder.close()


async def test_a_client_that_falls_silent_after_an_append_blocks_nobody(vault: Vault, migrated_dsn: str) -> None:
    """An append is one statement and its own transaction: whoever sent it holds nothing when it is done."""
    await vault.bind()
    await vault.working_key()
    silent = await asyncpg.connect(migrated_dsn)
    await silent.fetch("SELECT append_audit_entries(ARRAY[102]::smallint[], ARRAY[''], ARRAY['x']::bytea[])")
    assert (await (await vault.router()).acquire(agent_item())).results[0].HasField("lease")
    await silent.close()


async def test_the_database_going_away_is_unavailable_and_comes_back(vault: Vault) -> None:
    """Connections that are cut make no wrong answer, and the next call is served."""
    await vault.bind()
    await vault.working_key()
    router = await vault.router()
    await vault.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'byok-keyvault%' "
        "AND datname = current_database()"
    )

    async def leased() -> str:
        try:
            return (await router.acquire(agent_item())).results[0].WhichOneof("result") or ""
        except grpc.aio.AioRpcError as error:
            return error.code().name

    assert await eventually(leased, lambda result: result != "UNAVAILABLE") == "lease"


async def test_an_entry_that_cannot_be_read_ends_what_is_cached(vault: Vault) -> None:
    """Watchers are told of a change of no kind, which ends all that was granted before it, and then go on."""
    async with watching(vault) as watch:
        # Head and entry in one transaction, as the append function writes them: else a reader may pass between the two.
        await vault.forge(
            "WITH head AS (UPDATE audit_head SET last_index = last_index + 1 RETURNING last_index) "
            "INSERT INTO audit_entries SELECT last_index, 1, '', 'no leaf', sha256('x') FROM head"
        )
        (head,) = await vault.sql("SELECT max(audit_index) AS index FROM audit_entries WHERE kind = 1")
        await watch.until(lambda: bool(watch.heard))
        assert watch.heard == [lease_service_pb2.AuthorityChange(authority_index=head["index"])]
        watch.ping()
        await watch.until(lambda: bool(watch.echoes))
    found = vault.metrics.registry.get_sample_value(
        "keyvault_corruption_found_total", {"error": "an entry cannot be read"}
    )
    assert found
    assert await _is_ready(vault)


async def test_background_work_that_ends_stops_the_process() -> None:
    """A replica that could tell no revocation any more does not stay as if it could."""
    stop = asyncio.Event()

    async def fail() -> None:
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError):
        async with _running(fail(), stop):
            await asyncio.wait_for(stop.wait(), 10)


async def _is_ready(vault: Vault) -> bool:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{vault.admin_port}/readyz") as response,
    ):
        return response.status == HTTPStatus.OK

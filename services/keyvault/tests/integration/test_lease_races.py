"""A lease that races with a change of authority: never granted after it.

The rule is in SQL: the append function locks the head of the log and reads authority again in a later statement. Each
race is run with the service's own functions: a trigger holds the change up after it has written and before it commits,
until a lease waits behind it. The negative controls replace the append function by one that reads in the statement that
waits for the lock, and show that the race is then lost: so no test here can pass without the rule.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from google.protobuf.duration_pb2 import Duration

from byok.keyvault.v1 import emergency_service_pb2, lease_pb2, lease_service_pb2
from servicekit.wire import remote_error
from services.keyvault.tests.integration.vault import (
    agent_item,
    create_request,
    halt_request,
    revoke_request,
    unshare_request,
)
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from services.keyvault.tests.integration.vault import RouterProcess, Vault

# The append function with the rule taken out: one statement locks the head and reads authority, so authority comes from
# the snapshot that was taken before the wait.
_WITHOUT_THE_RULE = """
CREATE OR REPLACE FUNCTION append_leases(
    p_agent_ids text[], p_binding_indexes bigint[], p_key_ids text[], p_key_indexes bigint[], p_share_indexes bigint[],
    p_leaves bytea[], p_halts_index bigint
) RETURNS TABLE (item bigint, audit_index bigint, sealed_secret bytea, wrapped_dek bytea) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH granted AS MATERIALIZED (
        SELECT asked.item, asked.key_id, asked.leaf, s.sealed_secret, s.wrapped_dek, h.last_index + 1 AS audit_index
        FROM (SELECT last_index FROM audit_head FOR UPDATE) h,
             unnest(p_agent_ids, p_key_ids, p_key_indexes, p_share_indexes, p_leaves)
             WITH ORDINALITY AS asked (agent_id, key_id, key_index, share_index, leaf, item)
        JOIN halt_sets hs ON hs.audit_index = p_halts_index AND hs.superseded_index IS NULL
        JOIN agent_ai_keys k
          ON k.provider_key_id = asked.key_id AND k.audit_index = asked.key_index AND k.superseded_index IS NULL
        JOIN agent_ai_key_secrets s ON s.provider_key_id = k.provider_key_id
        LEFT JOIN key_shares sh
          ON sh.provider_key_id = asked.key_id AND sh.agent_id = asked.agent_id
         AND sh.audit_index = asked.share_index AND sh.superseded_index IS NULL
        WHERE asked.share_index = 0 OR sh.agent_id IS NOT NULL
    ), moved AS (
        UPDATE audit_head SET last_index = last_index + 1 WHERE EXISTS (SELECT 1 FROM granted)
    ), appended AS (
        INSERT INTO audit_entries (audit_index, kind, subject, leaf, leaf_hash)
        SELECT g.audit_index, 100, 'key/' || g.key_id, g.leaf, sha256(g.leaf) FROM granted g
    )
    SELECT g.item, g.audit_index, g.sealed_secret, g.wrapped_dek FROM granted g;
END $$
"""
_GATE = 71


@contextlib.asynccontextmanager
async def _held_before_commit(vault: Vault, table: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Hold every write of a table up after its row, until the function that is yielded is called."""
    await vault.forge(
        f"""
        CREATE FUNCTION wait_at_the_gate() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock({_GATE}); RETURN NULL; END $$;
        CREATE TRIGGER held AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION wait_at_the_gate();
        """
    )
    gate = await asyncpg.connect(vault.dsn)
    await gate.fetchval("SELECT pg_advisory_lock($1)", _GATE)

    async def open_gate() -> None:
        await gate.fetchval("SELECT pg_advisory_unlock($1)", _GATE)

    try:
        yield open_gate
    finally:
        await gate.close()


async def _raced(vault: Vault, table: str, change: Callable[[], Awaitable[Any]]) -> lease_pb2.LeaseResult:
    """Let a lease wait behind a change that has not committed yet, and return the lease's answer."""
    router = await vault.router()
    warm = await router.acquire(agent_item())
    assert warm.results[0].WhichOneof("result") == "lease"
    async with _held_before_commit(vault, table) as open_gate:
        changing = asyncio.ensure_future(change())
        await eventually(vault.waiting, lambda found: len(found) == 1)
        leasing = asyncio.create_task(router.acquire(agent_item()))
        await eventually(vault.waiting, lambda found: len(found) == 2)
        await open_gate()
        await changing
        return (await leasing).results[0]


async def _against_a_revocation(vault: Vault) -> lease_pb2.LeaseResult:
    await vault.bind()
    key = await vault.working_key()
    keys = await vault.keys()
    return await _raced(vault, "agent_ai_keys", lambda: keys.RevokeKey(revoke_request(key.key_id)))


async def _against_an_unshare(vault: Vault) -> lease_pb2.LeaseResult:
    key = await vault.shared_key()
    keys = await vault.keys()
    return await _raced(vault, "key_shares", lambda: keys.UnshareKey(unshare_request(key.key_id)))


async def _against_a_halt(vault: Vault) -> lease_pb2.LeaseResult:
    await vault.bind()
    await vault.working_key()
    emergency = await vault.emergency()
    scope = emergency_service_pb2.HaltScope(owner_id="owner-1")
    return await _raced(vault, "halt_sets", lambda: emergency.Halt(halt_request(scope)))


RACES = {"revoke": _against_a_revocation, "unshare": _against_an_unshare, "halt": _against_a_halt}
OUTCOMES = {"revoke": "no_usable_key", "unshare": "no_usable_key", "halt": "error"}


@pytest.mark.parametrize("race", RACES)
async def test_a_lease_that_waited_for_a_change_is_not_granted(vault: Vault, race: str) -> None:
    """It is picked anew from what the change left: no key, or the halt."""
    result = await RACES[race](vault)
    assert result.WhichOneof("result") == OUTCOMES[race]
    if race == "halt":
        assert remote_error(result.error).reason == "HALTED"
    else:
        assert result.no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY


@pytest.mark.parametrize("race", RACES)
async def test_without_the_rule_the_race_is_lost(vault: Vault, race: str) -> None:
    """The same race against the function without the re-reading grants what was revoked, unshared or halted."""
    await vault.forge(_WITHOUT_THE_RULE)
    result = await RACES[race](vault)
    assert result.WhichOneof("result") == "lease"


async def test_leases_and_changes_at_once_stay_in_order(vault: Vault) -> None:
    """Under load, no lease of a key is in the log above its revocation, and the log has no gap."""
    await vault.bind()
    keys = await vault.keys()
    router = await vault.router()

    async def lease_on(worker: RouterProcess, count: int) -> None:
        for _ in range(count):
            await worker.acquire(agent_item(), agent_item())

    async def churn() -> list[tuple[str, int]]:
        revoked = []
        for _ in range(8):
            created = await keys.CreateKey(create_request())
            await router.validate(created.key.key_id)
            await router.acquire(agent_item())
            answer = await keys.RevokeKey(revoke_request(created.key.key_id))
            revoked.append((created.key.key_id, answer.authority_index))
        return revoked

    workers = [await vault.router() for _ in range(4)]
    leasing = [asyncio.create_task(lease_on(worker, 25)) for worker in workers]
    revoked = await churn()
    await asyncio.gather(*leasing)
    rows = await vault.sql("SELECT audit_index, kind, leaf FROM audit_entries ORDER BY audit_index")
    assert [row["audit_index"] for row in rows] == list(range(1, len(rows) + 1))
    for key_id, index in revoked:
        leased = [row["audit_index"] for row in rows if row["kind"] == 100 and key_id.encode() in row["leaf"]]
        assert leased
        assert max(leased) < index


async def test_many_reports_of_one_key_are_all_taken(vault: Vault) -> None:
    """Reports that race for one row are settled one after another, none lost and none refused."""
    key = await vault.working_key()
    router = await vault.router()
    lease_id = (await router.lease_for_validation(key.key_id)).lease_id
    requests = [
        lease_service_pb2.ReportOutcomesRequest(
            holder=router.holder,
            outcomes=[
                lease_service_pb2.LeaseOutcome(
                    lease_id=lease_id,
                    key_id=key.key_id,
                    key_version=1,
                    kind=lease_service_pb2.OUTCOME_KIND_RATE_LIMITED,
                    retry_after=Duration(seconds=10 * number),
                )
            ],
        )
        for number in range(1, 17)
    ]
    answers = await asyncio.gather(*(router.leases.ReportOutcomes(request) for request in requests))
    settled = [answer for answer in answers if answer.results[0].WhichOneof("result") == "state"]
    assert settled
    rows = await vault.sql("SELECT count(*) FROM agent_ai_keys WHERE superseded_index IS NULL")
    assert rows[0]["count"] == 1

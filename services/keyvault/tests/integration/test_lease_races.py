"""A lease that races with a change of authority: never granted after it.

The rule is in SQL: the append function locks the head of the log and reads authority again in a later statement. The
negative control replaces the function by one that reads in the statement that waits for the lock, and shows that the
race is then lost: so the test cannot pass without the rule.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
from google.protobuf.duration_pb2 import Duration

from byok.keyvault.v1 import lease_pb2, lease_service_pb2
from services.keyvault.tests.integration.vault import agent_item, create_request, revoke_request
from testkit.waiting import eventually

if TYPE_CHECKING:
    from services.keyvault.tests.integration.vault import RouterProcess, Vault

# The append function with the rule taken out: one statement locks the head and reads authority, so authority comes from
# the snapshot that was taken before the wait.
_WITHOUT_THE_RULE = """
CREATE OR REPLACE FUNCTION append_leases(
    p_agent_ids text[], p_binding_indexes bigint[], p_key_ids text[], p_key_indexes bigint[], p_leaves bytea[]
) RETURNS TABLE (item bigint, audit_index bigint, sealed_secret bytea, wrapped_dek bytea) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH granted AS MATERIALIZED (
        SELECT asked.item, asked.leaf, s.sealed_secret, s.wrapped_dek, h.last_index + 1 AS audit_index
        FROM (SELECT last_index FROM audit_head FOR UPDATE) h,
             unnest(p_key_ids, p_key_indexes, p_leaves) WITH ORDINALITY AS asked (key_id, key_index, leaf, item)
        JOIN agent_ai_keys k
          ON k.provider_key_id = asked.key_id AND k.audit_index = asked.key_index AND k.superseded_index IS NULL
        JOIN agent_ai_key_secrets s ON s.provider_key_id = k.provider_key_id
    ), moved AS (
        UPDATE audit_head SET last_index = last_index + 1 WHERE EXISTS (SELECT 1 FROM granted)
    ), appended AS (
        INSERT INTO audit_entries SELECT g.audit_index, 100, g.leaf, sha256(g.leaf) FROM granted g
    )
    SELECT g.item, g.audit_index, g.sealed_secret, g.wrapped_dek FROM granted g;
END $$
"""


async def _lease_against_a_revocation(vault: Vault) -> lease_pb2.LeaseResult:
    """Let a lease wait for the head while a revocation that holds it commits, and return the lease's answer."""
    await vault.bind()
    key = await vault.working_key()
    router = await vault.router()
    await router.acquire(agent_item())
    revoker = await asyncpg.connect(vault.dsn)
    transaction = revoker.transaction()
    await transaction.start()
    # What the revocation's own function does, stopped before its commit.
    await revoker.fetchval("SELECT last_index FROM audit_head FOR UPDATE")
    leasing = asyncio.create_task(router.acquire(agent_item()))
    await eventually(vault.waiting, bool)
    await revoker.execute(
        """
        WITH head AS (UPDATE audit_head SET last_index = last_index + 1 RETURNING last_index)
        UPDATE agent_ai_keys SET superseded_index = (SELECT last_index FROM head)
        WHERE provider_key_id = $1 AND superseded_index IS NULL
        """,
        key.key_id,
    )
    await transaction.commit()
    await revoker.close()
    return (await leasing).results[0]


async def test_a_lease_that_waited_for_a_revocation_is_not_granted(vault: Vault) -> None:
    """It is picked anew from what the revocation left, which is nothing."""
    result = await _lease_against_a_revocation(vault)
    assert result.WhichOneof("result") == "no_usable_key"
    assert result.no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY


async def test_without_the_rule_the_race_is_lost(vault: Vault) -> None:
    """The same race against the function without the re-reading grants a revoked key."""
    await vault.forge(_WITHOUT_THE_RULE)
    result = await _lease_against_a_revocation(vault)
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

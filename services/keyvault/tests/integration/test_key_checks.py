"""Test calls that KeyVault asks for: claimed once each, leased, put off while halted, and the way back for a key."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from byok.keyvault.v1 import emergency_service_pb2, key_service_pb2, lease_service_pb2, provider_key_pb2
from byok.type.v1 import account_pb2
from keyvault.domain.audit_log import EntryKind, decode_leaf
from keyvault.settings import HealthSettings, KeySettings
from services.keyvault.tests.integration.test_bad_input import violations
from services.keyvault.tests.integration.vault import (
    SECRET,
    create_request,
    halt_request,
    member,
    name,
    owner,
    refusal,
    resume_request,
    revoke_request,
)
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.keyvault.tests.integration.vault import RouterProcess, Vault

OFTEN = HealthSettings(interval=timedelta(milliseconds=100))


async def claim(router: RouterProcess, **fields: Any) -> lease_service_pb2.ClaimKeysForValidationResponse:
    """Claim keys for a Router process."""
    usual: dict[str, Any] = {
        "holder": router.holder,
        "recipient_public_key": router.key.public_key().public_bytes_raw(),
    }
    request = lease_service_pb2.ClaimKeysForValidationRequest(**(usual | fields))
    response: lease_service_pb2.ClaimKeysForValidationResponse = await router.leases.ClaimKeysForValidation(request)
    return response


async def planned(vault: Vault) -> None:
    """Wait until all that changed is planned."""
    head = (await vault.sql("SELECT last_index FROM audit_head"))[0][0]

    async def position() -> int:
        rows = await vault.sql("SELECT audit_index FROM worker_positions WHERE worker = 'key_checks'")
        return int(rows[0][0]) if rows else 0

    await eventually(position, lambda found: found >= head)


async def make_due(vault: Vault) -> None:
    """Let the time pass after which every key is due, and every claim over."""
    await planned(vault)
    await vault.forge(
        "UPDATE agent_ai_key_checks SET next_check_time = now() - interval '1 hour', claimed_until = NULL, "
        "claimed_time = NULL WHERE next_check_time IS NOT NULL"
    )


async def test_eight_claimers_get_each_key_once(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """Of two replicas; each claim is a lease of its own, sealed to its claimer, and stands in the log."""
    vault, other = await start_vault(health=OFTEN), await start_vault(health=OFTEN)
    keys = await vault.keys()
    created = [await keys.CreateKey(create_request(plaintext=SECRET + b"%d" % n)) for n in range(40)]
    await make_due(vault)
    claimers = [await replica.router() for replica in (vault, other) for _ in range(4)]
    taken: dict[str, list[str]] = {}

    async def work(router: RouterProcess) -> None:
        while (response := await claim(router, claims_max=3)).results:
            opened = router.open(response)
            assert len(opened) == len(response.results)
            for sealed in opened:
                taken.setdefault(sealed.key_id, []).append(sealed.lease_id)
                assert sealed.secret.startswith(SECRET)

    await asyncio.gather(*(work(router) for router in claimers))
    assert sorted(taken) == sorted(each.key.key_id for each in created)
    assert all(len(leases) == 1 for leases in taken.values())
    rows = await vault.sql("SELECT leaf FROM audit_entries WHERE kind = $1", int(EntryKind.LEASE_GRANTED))
    logged = [dict(decode_leaf(row["leaf"]).details) for row in rows]
    assert sorted(entry["lease_id"] for entry in logged) == sorted(lease for (lease,) in taken.values())
    assert {entry["operation"] for entry in logged} == {"KEY_VALIDATION"}
    assert {entry["holder"] for entry in logged} <= {router.holder for router in claimers}


async def test_an_invalid_key_finds_back_without_its_owner(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """It is tested again, first soon and then later, until a test call says that it works."""
    vault = await start_vault(health=OFTEN)
    router = await vault.router()
    key = await vault.working_key()
    rejected, valid = lease_service_pb2.VALIDATION_VERDICT_REJECTED, lease_service_pb2.VALIDATION_VERDICT_VALID
    await router.validate(key.key_id, verdict=rejected)
    waits, state = [], provider_key_pb2.KEY_STATE_INVALID
    for verdict in (rejected, rejected, rejected, valid):
        await make_due(vault)
        (result,) = (await claim(router)).results
        assert result.lease.state == provider_key_pb2.KEY_STATE_INVALID
        request = lease_service_pb2.ReportValidationRequest(
            request_id=result.lease.lease_id,
            holder=router.holder,
            lease_id=result.lease.lease_id,
            key_id=key.key_id,
            key_version=1,
            verdict=verdict,
        )
        after = (await router.leases.ReportValidation(request)).key
        state = after.state
        await planned(vault)
        (row,) = await vault.sql("SELECT next_check_time FROM agent_ai_key_checks")
        waits.append((row[0] - after.validate_time.ToDatetime(tzinfo=row[0].tzinfo)) / timedelta(minutes=1))
    assert state == provider_key_pb2.KEY_STATE_ACTIVE
    for wait, expected in zip(waits, (2, 4, 8, 24 * 60), strict=True):
        assert 0.9 * expected <= wait <= 1.1 * expected


async def test_a_claim_that_is_not_reported_ends_by_itself(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """After its life the key is due again, for anybody, and after each such claim later."""
    vault = await start_vault(health=HealthSettings(interval=OFTEN.interval, claim_life=timedelta(milliseconds=300)))
    await vault.working_key()
    await make_due(vault)
    first, second = await vault.router(), await vault.router()
    assert len((await claim(first)).results) == 1
    assert not (await claim(second)).results
    again = await eventually(lambda: claim(second), lambda response: len(response.results) == 1)
    assert again.retry_after.ToTimedelta() >= timedelta(seconds=1)
    (row,) = await vault.sql("SELECT attempts, claimed_by FROM agent_ai_key_checks")
    assert (row["attempts"], row["claimed_by"]) == (2, second.holder)


async def test_every_kind_of_key_is_tested_but_what_is_over(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """An owner's, an agent's, an organization's, the platform's; not a revoked one, nor one that nobody asked for."""
    vault = await start_vault(health=OFTEN)
    await vault.bind()
    keys, operators, router = await vault.keys(), await vault.keys("operator"), await vault.router()
    agents = create_request(scope=provider_key_pb2.KEY_SCOPE_AGENT, agent_id="agent-1", plaintext=SECRET + b"1")
    platforms = create_request(
        acting_for=account_pb2.Principal(operator_id="op"), scope=provider_key_pb2.KEY_SCOPE_PLATFORM
    )
    organizations = create_request(
        acting_for=member(),
        scope=provider_key_pb2.KEY_SCOPE_ORGANIZATION,
        organization_id="org-1",
        plaintext=SECRET + b"3",
    )
    wanted = [
        await keys.CreateKey(agents),
        await keys.CreateKey(create_request()),
        await operators.CreateKey(platforms),
        await keys.CreateKey(organizations),
    ]
    revoked = await keys.CreateKey(create_request(plaintext=SECRET + b"2"))
    other = await keys.CreateKey(create_request(provider="openai", plaintext=b"sk-proj-" + b"a" * 40))
    await make_due(vault)
    # Revoked after it was planned: the lease is refused, and the claimer is not given it.
    await keys.RevokeKey(revoke_request(revoked.key.key_id))
    got = (await claim(router, providers=["anthropic", "no such provider"])).results
    assert sorted(each.lease.key_id for each in got) == sorted(each.key.key_id for each in wanted)
    rest = (await claim(router)).results
    assert [each.lease.key_id for each in rest] == [other.key.key_id]


async def test_a_halted_key_is_not_tested(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """Nobody is given it while the halt is in force; it is put off, and due again afterwards."""
    vault = await start_vault(health=OFTEN)
    router, emergency = await vault.router(), await vault.emergency()
    key = await vault.working_key()
    halted = (await emergency.Halt(halt_request(emergency_service_pb2.HaltScope(provider="anthropic")))).halt
    await make_due(vault)
    assert not (await claim(router)).results
    (row,) = await vault.sql("SELECT next_check_time > now() AS is_put_off, claimed_until FROM agent_ai_key_checks")
    assert (row["is_put_off"], row["claimed_until"]) == (True, None)
    await emergency.Resume(resume_request(halted.halt_id))
    await make_due(vault)
    assert [each.lease.key_id for each in (await claim(router)).results] == [key.key_id]


async def test_claims_keep_the_rate_of_a_provider(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """However many claimers ask, no vendor sees more test calls in a minute, and the rest waits."""
    health = HealthSettings(interval=OFTEN.interval, claims_per_provider_and_minute_max=5, claims_per_minute_max=7)
    vault = await start_vault(health=health, keys=KeySettings(per_account_max=100))
    keys = await vault.keys()
    for number in range(12):
        await keys.CreateKey(create_request(plaintext=SECRET + b"%d" % number))
    for number in range(6):
        await keys.CreateKey(create_request(provider="openai", plaintext=b"sk-proj-" + b"%d" % number * 40))
    await make_due(vault)
    claimers = [await vault.router() for _ in range(8)]
    responses = await asyncio.gather(*(claim(router, claims_max=3) for router in claimers))
    providers = [result.lease.provider for response in responses for result in response.results]
    assert len(providers) == 7
    assert max(providers.count(provider) for provider in ("anthropic", "openai")) <= 5
    response = await claim(claimers[0])
    assert not response.results
    assert response.retry_after.ToTimedelta() >= timedelta(seconds=1)


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"claims_max": 65}, "claims_max", "COUNT_OUT_OF_RANGE"),
        ({"claims_max": -1}, "claims_max", "COUNT_OUT_OF_RANGE"),
        ({"holder": "x"}, "holder", "HOLDER_MALFORMED"),
        ({"recipient_public_key": bytes(32)}, "recipient_public_key", "PUBLIC_KEY_INVALID"),
        ({"providers": ["p"] * 65}, "providers", "TOO_MANY"),
    ],
)
async def test_a_bad_claim_is_refused(shared_vault: Vault, fields: dict[str, Any], field: str, reason: str) -> None:
    """By field, with what to send instead."""
    assert await violations(claim(await shared_vault.router(), **fields)) == {field: reason}


@pytest.mark.asyncio(loop_scope="session")
async def test_equals_are_found_among_an_owners_own_keys(shared_vault: Vault) -> None:
    """Another owner's is never told to an owner; an operator sees all, and nobody sees a revoked key's."""
    mine, theirs = owner(name("owner")), owner(name("owner"))
    secret = SECRET + name("equal").encode()
    keys = await shared_vault.keys()
    first, second, other = [
        (await keys.CreateKey(create_request(acting_for=whose, plaintext=secret))).key for whose in (mine, mine, theirs)
    ]

    async def equals(key: provider_key_pb2.ProviderKey, whose: account_pb2.Principal, role: str = "edge") -> list[str]:
        request = key_service_pb2.FindDuplicatesRequest(acting_for=whose, key_id=key.key_id)
        return [each.key_id for each in (await (await shared_vault.keys(role)).FindDuplicates(request)).keys]

    operator = account_pb2.Principal(operator_id="op")
    assert await equals(first, mine) == [second.key_id]
    assert await equals(other, theirs) == []
    assert await equals(first, operator, "operator") == [second.key_id, other.key_id]
    assert (await refusal(equals(other, mine))).reason == "PROVIDER_KEY_NOT_FOUND"
    await keys.RevokeKey(revoke_request(second.key_id, acting_for=mine))
    assert await equals(first, mine) == []
    assert (await refusal(equals(second, mine))).reason == "PROVIDER_KEY_REVOKED"

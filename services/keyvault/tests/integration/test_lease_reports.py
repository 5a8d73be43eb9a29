"""Who may report on a lease: the process that was granted it, on the version of the key that it was granted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from byok.keyvault.v1 import lease_pb2, lease_service_pb2, provider_key_pb2
from keyvault.usecases import report_outcomes, report_validation
from servicekit.wire import remote_error
from services.keyvault.tests.integration.vault import agent_item, name, new_id, owner, refusal

if TYPE_CHECKING:
    from services.keyvault.tests.integration.vault import RouterProcess, Vault

REJECTED = lease_service_pb2.VALIDATION_VERDICT_REJECTED


async def granted(vault: Vault) -> tuple[RouterProcess, lease_pb2.Lease]:
    """Return a Router process with a lease of a new owner's working key."""
    agent_id, owner_id = name("agent"), name("owner")
    await vault.bind(agent_id, owner_id)
    await vault.working_key(acting_for=owner(owner_id))
    router = await vault.router()
    return router, (await router.acquire(agent_item(agent_id))).results[0].lease


def rejection(holder: str, lease: lease_pb2.Lease, **changes: Any) -> lease_service_pb2.ReportValidationRequest:
    """Return a report that the provider rejects the key."""
    usual: dict[str, Any] = {
        "request_id": new_id(),
        "holder": holder,
        "lease_id": lease.lease_id,
        "key_id": lease.key_id,
        "key_version": lease.key_version,
        "verdict": REJECTED,
    }
    return lease_service_pb2.ReportValidationRequest(**(usual | changes))


def outcome(holder: str, lease: lease_pb2.Lease, **changes: Any) -> lease_service_pb2.ReportOutcomesRequest:
    """Return a report that a provider's account has no credit."""
    usual: dict[str, Any] = {
        "lease_id": lease.lease_id,
        "key_id": lease.key_id,
        "key_version": lease.key_version,
        "kind": lease_service_pb2.OUTCOME_KIND_NO_CREDIT,
    }
    made = lease_service_pb2.LeaseOutcome(**(usual | changes))
    return lease_service_pb2.ReportOutcomesRequest(holder=holder, outcomes=[made])


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("report", [rejection, outcome], ids=["a validation", "an outcome"])
async def test_a_stolen_router_certificate_reports_on_no_lease_that_it_was_not_granted(
    shared_vault: Vault, report: Any
) -> None:
    """With the certificate alone, no key is put out of use: made-up ids, seen ids and other keys' ids are refused."""
    _, victim = await granted(shared_vault)
    thief, own = await granted(shared_vault)
    reported = {
        "a made-up lease": report(thief.holder, victim, lease_id=new_id()),
        "a lease seen elsewhere": report(thief.holder, victim),
        "its own lease, another key": report(thief.holder, own, key_id=victim.key_id),
        "its own lease, another version": report(thief.holder, own, key_version=2),
    }
    for attempt, request in reported.items():
        if report is rejection:
            error = await refusal(thief.leases.ReportValidation(request))
        else:
            error = remote_error((await thief.leases.ReportOutcomes(request)).results[0].error)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "LEASE_UNKNOWN"), attempt
    states = await shared_vault.sql(
        "SELECT state FROM agent_ai_keys WHERE provider_key_id = ANY($1) AND superseded_index IS NULL",
        [victim.key_id, own.key_id],
    )
    assert [row["state"] for row in states] == [provider_key_pb2.KEY_STATE_ACTIVE] * 2


async def test_without_the_check_a_stolen_certificate_puts_any_key_out_of_use(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the same reports are taken when lease ids are not looked at."""
    _, victim = await granted(vault)
    thief = await vault.router()
    for module in (report_validation, report_outcomes):
        monkeypatch.setattr(module, "ensure_granted", lambda *_, **__: None)
    no_credit = await thief.leases.ReportOutcomes(outcome(thief.holder, victim, lease_id=new_id()))
    assert no_credit.results[0].state == provider_key_pb2.KEY_STATE_NO_CREDIT
    rejected = await thief.leases.ReportValidation(rejection(thief.holder, victim, lease_id=new_id()))
    assert rejected.key.state == provider_key_pb2.KEY_STATE_INVALID

"""Somebody forges bindings, shares or halts: each attack is refused, and works when its control is switched off."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import pytest

from byok.keyvault.v1 import emergency_service_pb2, lease_pb2
from byok.type.v1 import account_pb2, operation_pb2
from keyvault.domain.authority import RowSeal
from keyvault.domain.bindings import AgentBinding, decode_binding, encode_binding
from keyvault.domain.halts import HaltSet, StoredHalts, encode_halts
from keyvault.domain.ownership import organization_account, owner_account
from keyvault.domain.provider_keys import Operation
from keyvault.domain.shares import decode_share, encode_share
from keyvault.usecases.present_halts import PresentHalts
from services.keyvault.tests.integration.storage_attacks import came_of, without_row_macs
from services.keyvault.tests.integration.vault import (
    SECRET,
    Vault,
    agent_item,
    halt_request,
    owner,
    refusal,
    resume_request,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyvault.domain.shares import KeyShare

    StartVault = Callable[..., Awaitable[Vault]]

CORRUPT = "AUTHORITY_CORRUPT"
LEASED = SECRET.decode()
OPERATOR = account_pb2.Principal(operator_id="op")


async def _insert_binding(vault: Vault, binding: AgentBinding) -> None:
    await vault.forge(
        "INSERT INTO agent_bindings (agent_id, audit_index, owner_id, record, mac_key_version, mac) "
        "SELECT $1, max(audit_index), $2, $3, 1, sha256('x') FROM audit_entries",
        binding.agent_id,
        binding.owner_id,
        encode_binding(binding),
    )


async def _lease_of_an_inserted_agent(vault: Vault) -> str:
    """Bind an agent of the attacker's to a victim in SQL, and lease the victim's key for it."""
    await vault.working_key(acting_for=owner("victim"))
    forged = AgentBinding(agent_id="mallory", owner_id="victim", account=owner_account("victim"), binding_version=1)
    await _insert_binding(vault, forged)
    return await came_of(vault, agent_item("mallory"))


async def test_an_inserted_binding_is_refused(vault: Vault) -> None:
    """An agent that nobody registered uses no owner's keys."""
    assert await _lease_of_an_inserted_agent(vault) == CORRUPT


async def test_without_row_macs_an_inserted_binding_leases(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: no envelope is bound to an agent of an owner, so that the HMAC alone stops it."""
    without_row_macs(monkeypatch)
    assert await _lease_of_an_inserted_agent(vault) == LEASED


async def _lease_of_an_agent_moved_into_an_organization(vault: Vault) -> str:
    """Move the attacker's own agent into an organization in SQL, and lease by a share that it had there once."""
    await vault.shared_key("mallory")
    await vault.bind(
        "mallory",
        "owner-1",
        account=account_pb2.Account(owner_id="owner-1"),
        expected_account=account_pb2.Account(organization_id="org-1"),
    )
    assert await came_of(vault, agent_item("mallory")) == "NO_USABLE_KEY"
    rows = await vault.sql("SELECT record FROM agent_bindings WHERE agent_id = 'mallory' AND superseded_index IS NULL")
    moved = replace(decode_binding(rows[0]["record"]), account=organization_account("org-1"))
    await vault.forge(
        "UPDATE agent_bindings SET record = $1 WHERE agent_id = 'mallory' AND superseded_index IS NULL",
        encode_binding(moved),
    )
    return await came_of(vault, agent_item("mallory"))


async def test_a_binding_edited_into_an_organization_is_refused(vault: Vault) -> None:
    """The account is authenticated: it decides who is limited and which shares count."""
    assert await _lease_of_an_agent_moved_into_an_organization(vault) == CORRUPT


async def test_without_row_macs_an_edited_account_leases(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    without_row_macs(monkeypatch)
    assert await _lease_of_an_agent_moved_into_an_organization(vault) == LEASED


async def _insert_share(vault: Vault, share: KeyShare) -> None:
    await vault.forge(
        "INSERT INTO key_shares (provider_key_id, agent_id, audit_index, is_ended, record, mac_key_version, mac) "
        "SELECT $1, $2, max(audit_index), false, $3, 1, sha256('x') FROM audit_entries",
        share.provider_key_id,
        share.agent_id,
        encode_share(share),
    )


async def _share_with_mallory(vault: Vault) -> KeyShare:
    """Return agent-1's share, and the same for another agent of the organization."""
    await vault.shared_key("agent-1")
    await vault.bind("mallory", "owner-2", account=account_pb2.Account(organization_id="org-1"))
    rows = await vault.sql("SELECT record FROM key_shares")
    return replace(decode_share(rows[0]["record"]), agent_id="mallory")


async def _lease_of_an_inserted_share(vault: Vault) -> str:
    await _insert_share(vault, await _share_with_mallory(vault))
    return await came_of(vault, agent_item("mallory"))


async def test_an_inserted_share_is_refused(vault: Vault) -> None:
    """An agent with which nobody shared a key leases nothing, not even as if there were no share."""
    assert await _lease_of_an_inserted_share(vault) == CORRUPT


async def test_without_row_macs_an_inserted_share_leases(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    without_row_macs(monkeypatch)
    assert await _lease_of_an_inserted_share(vault) == LEASED


async def test_a_share_copied_to_another_agent_is_refused(vault: Vault) -> None:
    """Record and HMAC are another agent's, and valid: the columns do not agree with them."""
    await _share_with_mallory(vault)
    await vault.forge(
        "INSERT INTO key_shares SELECT provider_key_id, 'mallory', audit_index, NULL, false, record, mac_key_version, "
        "mac FROM key_shares WHERE agent_id = 'agent-1'"
    )
    assert await came_of(vault, agent_item("mallory")) == CORRUPT


SHARE_EDITS: dict[str, Callable[[KeyShare], KeyShare]] = {
    "more operations": lambda share: replace(share, operations=(*share.operations, Operation.CHAT)),
    "another cap": lambda share: replace(share, cap=replace(share.cap, day_calls=1_000_000)),
    "another organization": lambda share: replace(share, organization_id="org-2"),
    "another agent": lambda share: replace(share, agent_id="mallory"),
    "ended no more": lambda share: replace(share, is_ended=False),
}


@pytest.mark.parametrize("edit", SHARE_EDITS)
async def test_an_edited_share_is_refused(vault: Vault, edit: str) -> None:
    """Operations, cap, agent, organization and end, with columns in agreement: all are authenticated."""
    await _edit_share(vault, edit)
    assert await came_of(vault, _chat_of(edit)) == CORRUPT


async def test_without_row_macs_edited_shares_lease(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: a share that grew by an operation is leased for it."""
    without_row_macs(monkeypatch)
    await _edit_share(vault, "more operations")
    assert await came_of(vault, _chat_of("more operations")) == LEASED


def _chat_of(edit: str) -> lease_pb2.LeaseItem:
    agent_id = "mallory" if edit == "another agent" else "agent-1"
    if edit != "more operations":
        return agent_item(agent_id)
    return lease_pb2.LeaseItem(agent=lease_pb2.AgentPurpose(agent_id=agent_id, operation=operation_pb2.OPERATION_CHAT))


async def _edit_share(vault: Vault, edit: str) -> None:
    await _share_with_mallory(vault)
    rows = await vault.sql("SELECT record FROM key_shares")
    changed = SHARE_EDITS[edit](decode_share(rows[0]["record"]))
    await vault.forge(
        "UPDATE key_shares SET record = $1, agent_id = $2, is_ended = $3 WHERE superseded_index IS NULL",
        encode_share(changed) if edit != "ended no more" else rows[0]["record"],
        changed.agent_id,
        changed.is_ended,
    )
    if edit == "ended no more":
        # The share ended by the book; then its column alone is set back.
        ended = replace(decode_share(rows[0]["record"]), is_ended=True)
        await vault.forge("UPDATE key_shares SET record = $1", encode_share(ended))


REMOVALS = {
    "deleted": "DELETE FROM halt_sets WHERE superseded_index IS NULL",
    "superseded by nothing": "UPDATE halt_sets SET superseded_index = audit_index + 1 WHERE superseded_index IS NULL",
    "all sets deleted": "TRUNCATE halt_sets",
    "two sets": (
        "DROP INDEX halt_sets_present; "
        "UPDATE halt_sets SET superseded_index = NULL WHERE audit_index = (SELECT min(audit_index) FROM halt_sets)"
    ),
    "a forged set on top": (
        "UPDATE halt_sets SET superseded_index = 1000 WHERE superseded_index IS NULL; "
        "INSERT INTO halt_sets SELECT 1000, NULL, record, mac_key_version, mac FROM halt_sets "
        "WHERE audit_index = (SELECT min(audit_index) FROM halt_sets)"
    ),
    "an older set put back": (
        "DELETE FROM halt_sets WHERE superseded_index IS NULL; "
        "UPDATE halt_sets SET superseded_index = NULL WHERE audit_index = (SELECT max(audit_index) FROM halt_sets)"
    ),
}


async def _halted(vault: Vault) -> None:
    """Halt an owner who has a working key; there is another owner who has one."""
    await vault.bind("agent-2", "owner-2")
    await vault.working_key(acting_for=owner("owner-2"))
    await vault.bind()
    await vault.working_key()
    await (await vault.emergency()).Halt(halt_request(emergency_service_pb2.HaltScope(owner_id="owner-1")))
    assert await came_of(vault, agent_item()) == "HALTED"


@pytest.mark.parametrize("removal", REMOVALS)
async def test_no_edit_of_the_database_ends_a_halt(vault: Vault, removal: str) -> None:
    """Without the present set, nothing is leased to anybody, and nothing is halted or resumed on top of it."""
    await _halted(vault)
    await vault.forge(REMOVALS[removal])
    assert await came_of(vault, agent_item()) == CORRUPT
    assert await came_of(vault, agent_item("agent-2")) == CORRUPT
    emergency = await vault.emergency()
    listing = emergency_service_pb2.ListHaltsRequest(acting_for=OPERATOR)
    error = await refusal(emergency.ListHalts(listing))
    assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, CORRUPT)
    everything = halt_request(emergency_service_pb2.HaltScope(everything=True))
    assert (await refusal(emergency.Halt(everything))).reason == CORRUPT


async def test_a_restart_makes_no_new_set_in_a_used_log(start_vault: StartVault) -> None:
    """Not even when the attacker deletes what the log says of it: the head of the log knows that it was used."""
    vault = await start_vault()
    await _halted(vault)
    await vault.forge("TRUNCATE halt_sets; DELETE FROM audit_entries WHERE kind <> 104")
    assert await came_of(await start_vault(), agent_item()) == CORRUPT


async def test_a_set_emptied_in_place_is_believed_by_nobody(start_vault: StartVault) -> None:
    """A replica that has seen the set goes on with it; one that starts now refuses the row."""
    vault = await start_vault()
    await _halted(vault)
    await _empty_in_place(vault)
    assert await came_of(vault, agent_item()) == "HALTED"
    assert await came_of(await start_vault(), agent_item()) == CORRUPT


async def test_without_row_macs_a_set_emptied_in_place_ends_the_halt(
    start_vault: StartVault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the HMAC."""
    without_row_macs(monkeypatch)
    vault = await start_vault()
    await _halted(vault)
    await _empty_in_place(vault)
    assert await came_of(await start_vault(), agent_item()) == LEASED


async def test_if_no_set_meant_no_halt_a_deleted_row_would_end_it(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the one row: without the two places that insist on it, the deletion works."""
    await _halted(vault)
    await vault.forge(REMOVALS["deleted"])
    read = PresentHalts.sealed_by

    async def lenient(halts: PresentHalts, seal: RowSeal | None) -> StoredHalts:
        return StoredHalts.of(HaltSet(), RowSeal(0, 1, b"")) if seal is None else await read(halts, seal)

    monkeypatch.setattr(PresentHalts, "sealed_by", lenient)
    # The append function looks for the set as well, and takes nothing of what was picked without one.
    assert await came_of(vault, agent_item()) == "AUDIT_UNAVAILABLE"
    definition = (await vault.sql("SELECT pg_get_functiondef('append_leases'::regproc) AS text"))[0]["text"]
    condition = "JOIN halt_sets h ON h.audit_index = p_halts_index AND h.superseded_index IS NULL"
    assert condition in definition
    await vault.forge(definition.replace(condition, ""))
    assert await came_of(vault, agent_item()) == LEASED


async def test_a_replica_that_has_seen_no_later_set_takes_an_older_one(start_vault: StartVault) -> None:
    """The limit of the HMAC, and the negative control of what a replica remembers: an older set is valid in itself.

    That it was put back is found by the running self-audit, which compares rows with the log.
    """
    vault = await start_vault()
    await _halted(vault)
    await vault.forge(REMOVALS["an older set put back"])
    assert await came_of(vault, agent_item()) == CORRUPT
    assert await came_of(await start_vault(), agent_item()) == LEASED


async def test_a_resumed_halt_that_is_put_back_is_refused(vault: Vault) -> None:
    """The same in the other direction: nobody halts by an older set."""
    await _halted(vault)
    emergency = await vault.emergency()
    halts = (await emergency.ListHalts(emergency_service_pb2.ListHaltsRequest(acting_for=OPERATOR))).halts
    await emergency.Resume(resume_request(halts[0].halt_id))
    assert await came_of(vault, agent_item()) == LEASED
    await vault.forge(REMOVALS["an older set put back"])
    assert await came_of(vault, agent_item()) == CORRUPT


async def _empty_in_place(vault: Vault) -> None:
    await vault.forge("UPDATE halt_sets SET record = $1 WHERE superseded_index IS NULL", encode_halts(HaltSet()))

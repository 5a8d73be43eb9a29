"""Somebody rewrites a key's whole row, record and columns in agreement: refused by the row's HMAC.

What the envelope is bound to, it refuses a second time. Each test that switches a control off shows what the rest hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from byok.keyvault.v1 import key_service_pb2, lease_pb2, lease_service_pb2, provider_key_pb2
from byok.type.v1 import operation_pb2
from services.keyvault.tests.integration.storage_attacks import (
    EDITS,
    came_of,
    rewrite_key,
    without_associated_data,
    without_column_checks,
    without_row_macs,
)
from services.keyvault.tests.integration.vault import (
    SECRET,
    agent_item,
    new_id,
    owner,
    revoke_request,
)

if TYPE_CHECKING:
    from services.keyvault.tests.integration.vault import Vault

PLATFORM_ITEM = lease_pb2.LeaseItem(
    platform=lease_pb2.PlatformPurpose(operation=operation_pb2.OPERATION_GUARDRAIL_EVALUATION)
)


async def _bind_all(vault: Vault) -> None:
    await vault.bind("agent-1", "owner-1")
    await vault.bind("agent-2", "owner-1")
    await vault.bind("agent-3", "owner-3")


async def _came_of_edits(vault: Vault) -> dict[str, str]:
    """Make each edit on a key of its own, and return what came of asking as who profits from it."""
    await _bind_all(vault)
    came = {}
    for label, edit in EDITS.items():
        key = await vault.working_key(scope=provider_key_pb2.KEY_SCOPE_AGENT, agent_id="agent-1")
        if label == "an invalid key made active":
            await (await vault.router()).validate(key.key_id, verdict=lease_service_pb2.VALIDATION_VERDICT_REJECTED)
        await rewrite_key(vault, key.key_id, edit.change)
        item = PLATFORM_ITEM if edit.profits == "platform" else agent_item(edit.profits)
        came[label] = await came_of(vault, item)
        # So that the next edit is asked about alone.
        await vault.forge("DELETE FROM agent_ai_keys WHERE provider_key_id = $1", key.key_id)
    return came


async def test_a_rewritten_row_is_refused(vault: Vault) -> None:
    """Scope, owner, provider, base URL (host and path), version, state and all else: by the HMAC of the row."""
    assert await _came_of_edits(vault) == dict.fromkeys(EDITS, "AUTHORITY_CORRUPT")


async def test_without_row_macs_the_envelope_refuses_what_it_is_bound_to(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the HMAC: what no envelope is bound to is leased as the attacker wrote it."""
    without_row_macs(monkeypatch)
    leased = {label: "ENVELOPE_CORRUPT" if edit.is_bound else SECRET.decode() for label, edit in EDITS.items()}
    assert await _came_of_edits(vault) == leased


async def test_without_row_macs_and_associated_data_every_edit_works(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of both: the secret goes to another owner, agent, payer or URL."""
    without_row_macs(monkeypatch)
    without_associated_data(monkeypatch)
    assert await _came_of_edits(vault) == dict.fromkeys(EDITS, SECRET.decode())


async def test_without_row_macs_and_column_checks_a_key_leads_elsewhere_by_its_columns(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of one agent whose columns say OWNER: refused while columns must agree with the record, even unsealed."""
    await _bind_all(vault)
    key = await vault.working_key(scope=provider_key_pb2.KEY_SCOPE_AGENT, agent_id="agent-1")
    hide = "UPDATE agent_ai_keys SET agent_id = 'agent-2' WHERE provider_key_id = $1 AND superseded_index IS NULL"
    without_row_macs(monkeypatch)
    await vault.forge(hide, key.key_id)
    assert await came_of(vault, agent_item("agent-2")) == "AUTHORITY_CORRUPT"
    without_column_checks(monkeypatch)
    # Passed over without a word: the record is another agent's. The platform would pay for what the row's owner has.
    assert await came_of(vault, agent_item("agent-2")) == "NO_USABLE_KEY"


SWAPS = {
    "a ciphertext moved between rows": (
        "UPDATE agent_ai_key_secrets k SET sealed_secret = o.sealed_secret, wrapped_dek = o.wrapped_dek "
        "FROM agent_ai_key_secrets o WHERE k.provider_key_id = $1 AND o.provider_key_id = $2"
    ),
    "wrapped DEKs swapped": (
        "UPDATE agent_ai_key_secrets k SET wrapped_dek = o.wrapped_dek "
        "FROM agent_ai_key_secrets o WHERE k.provider_key_id = $1 AND o.provider_key_id = $2"
    ),
}


@pytest.mark.parametrize("swap", SWAPS)
async def test_what_is_sealed_for_one_row_opens_in_no_other(vault: Vault, swap: str) -> None:
    """An attacker who may create keys moves a victim's secret into a row of theirs."""
    mine, theirs = await _two_keys(vault)
    await vault.forge(SWAPS[swap], mine, theirs)
    assert await came_of(vault, agent_item("agent-1")) == "ENVELOPE_CORRUPT"


async def test_without_associated_data_a_moved_ciphertext_opens(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the victim's secret is leased to the attacker. A DEK alone still opens nothing else."""
    without_associated_data(monkeypatch)
    mine, theirs = await _two_keys(vault)
    await vault.forge(SWAPS["a ciphertext moved between rows"], mine, theirs)
    assert await came_of(vault, agent_item("agent-1")) == SECRET.decode() + "3"
    await vault.forge(SWAPS["wrapped DEKs swapped"], theirs, mine)
    assert await came_of(vault, agent_item("agent-3")) == SECRET.decode() + "3"


async def _two_keys(vault: Vault) -> tuple[str, str]:
    await _bind_all(vault)
    mine = await vault.working_key(plaintext=SECRET + b"1")
    theirs = await vault.working_key(acting_for=owner("owner-3"), plaintext=SECRET + b"3")
    return mine.key_id, theirs.key_id


async def _revoke_and_put_back(vault: Vault) -> None:
    """Revoke a key, write its state back to ACTIVE, and insert the secret that was copied before."""
    await vault.bind()
    key = await vault.working_key()
    copied = await vault.sql("SELECT * FROM agent_ai_key_secrets WHERE provider_key_id = $1", key.key_id)
    await (await vault.keys()).RevokeKey(revoke_request(key.key_id))
    await rewrite_key(vault, key.key_id, EDITS["an invalid key made active"].change)
    await vault.forge("INSERT INTO agent_ai_key_secrets VALUES ($1, $2, $3, $4, $5, $6, $7)", *copied[0])


async def test_a_revoked_key_set_active_with_its_secret_put_back_is_refused(vault: Vault) -> None:
    """A copy of the secret from before does not help: the state is authenticated."""
    await _revoke_and_put_back(vault)
    assert await came_of(vault, agent_item()) == "AUTHORITY_CORRUPT"


async def test_without_row_macs_a_revoked_key_comes_back(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the HMAC: the revoked key is leased."""
    without_row_macs(monkeypatch)
    await _revoke_and_put_back(vault)
    assert await came_of(vault, agent_item()) == SECRET.decode()


async def test_an_unvalidated_replacement_is_not_leased_by_an_older_row(vault: Vault) -> None:
    """A row of the version before names a secret that is not there any more: nothing opens, and no copy fits it."""
    await vault.bind()
    key = await vault.working_key()
    await (await vault.keys()).ReplaceKeySecret(
        key_service_pb2.ReplaceKeySecretRequest(
            request_id=new_id(), acting_for=owner(), actor="test", key_id=key.key_id, plaintext=SECRET + b"2"
        )
    )
    await vault.forge("DELETE FROM agent_ai_keys WHERE provider_key_id = $1 AND key_version = 2", key.key_id)
    await vault.forge(
        "UPDATE agent_ai_keys SET superseded_index = NULL WHERE provider_key_id = $1 AND audit_index = "
        "(SELECT max(audit_index) FROM agent_ai_keys WHERE provider_key_id = $1)",
        key.key_id,
    )
    await vault.forge("UPDATE agent_ai_key_secrets SET key_version = 1 WHERE provider_key_id = $1", key.key_id)
    assert await came_of(vault, agent_item()) == "ENVELOPE_CORRUPT"

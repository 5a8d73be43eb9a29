"""What no reading of a row refuses: an older row put back, a row deleted or hidden, a wrapped DEK that opens nothing.

Each is found by a worker, said once in the log, and shown by a gauge. That the rolled-back key is leased in these tests
is the negative control: without the self-audit nobody would know.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest

from byok.keyvault.v1 import emergency_service_pb2, key_service_pb2
from byok.type.v1 import account_pb2
from keyvault.domain.audit_log import EntryKind, decode_leaf
from keyvault.settings import HealthSettings
from servicekit.wire import remote_error
from services.keyvault.tests.integration.vault import (
    SECRET,
    agent_item,
    halt_request,
    name,
    new_id,
    owner,
    revoke_request,
    share_request,
    unshare_request,
)
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.keyvault.tests.integration.vault import Vault

WALKING = HealthSettings(walk_interval=timedelta(milliseconds=100), walk_pause=timedelta(milliseconds=10))
IDLE = HealthSettings(walk_interval=timedelta(hours=1), walk_pause=timedelta(milliseconds=10))
BUSY = HealthSettings(walk_interval=timedelta(milliseconds=1), walk_pause=timedelta(milliseconds=1), walk_batch_max=2)
SUPERSEDE = "UPDATE agent_ai_keys SET superseded_index = audit_index + 1 WHERE provider_key_id = $1"
PUT_BACK = (
    "UPDATE agent_ai_keys SET superseded_index = NULL WHERE provider_key_id = $1 AND audit_index = "
    "(SELECT max(audit_index) FROM agent_ai_keys WHERE provider_key_id = $1 AND state = 2)"
)


def gauge(vault: Vault, metric: str, **labels: str) -> float:
    """Return what a gauge shows."""
    value = vault.metrics.registry.get_sample_value(f"keyvault_{metric}", labels)
    assert value is not None
    return value


async def walked(vault: Vault, passes: int = 2) -> None:
    """Wait for whole passes of both workers that began after now."""
    for metric in ("self_audits", "secret_walks"):
        target = gauge(vault, metric) + passes

        async def look(metric: str = metric) -> float:
            return gauge(vault, metric)

        await eventually(look, lambda found, target=target: found >= target)  # type: ignore[misc]  # defaults bind


async def findings(vault: Vault) -> list[tuple[str, str]]:
    """Return row and error of everything that the log says to be corrupt."""
    rows = await vault.sql(
        "SELECT leaf FROM audit_entries WHERE kind = $1 ORDER BY audit_index", int(EntryKind.CORRUPTION_FOUND)
    )
    details = [dict(decode_leaf(row["leaf"]).details) for row in rows]
    return [(each["row_id"], each["error"]) for each in details]


async def roll_back(vault: Vault) -> tuple[str, bytes]:
    """Revoke a key, and put its older row and its secret back, as a copy of the database would; return it."""
    await vault.bind()
    key = await vault.working_key()
    copied = await vault.sql("SELECT * FROM agent_ai_key_secrets WHERE provider_key_id = $1", key.key_id)
    await (await vault.keys()).RevokeKey(revoke_request(key.key_id))
    await vault.forge(SUPERSEDE, key.key_id)
    await vault.forge(PUT_BACK, key.key_id)
    await vault.forge("INSERT INTO agent_ai_key_secrets VALUES ($1, $2, $3, $4, $5, $6, $7)", *copied[0])
    return key.key_id, SECRET


async def test_a_replayed_older_row_is_found(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """Valid in itself, so that it is leased; the self-audit says so, once, of all replicas."""
    vault, other = await start_vault(health=WALKING), await start_vault(health=WALKING)
    key_id, secret = await roll_back(vault)
    router = await vault.router()
    response = await router.acquire(agent_item())
    assert router.open(response)[0].secret == secret
    await walked(vault)
    await walked(other)
    assert gauge(vault, "rolled_back_rows") == gauge(other, "rolled_back_rows") == 1
    assert await findings(vault) == [(f"key/{key_id}", "RowRolledBack")]
    assert gauge(vault, "corruption_found_total", error="RowRolledBack") >= 1


async def test_without_the_self_audit_nobody_finds_it(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """The negative control: the same attack, while the worker rests."""
    vault = await start_vault(health=IDLE)
    await walked_once(vault)
    await roll_back(vault)
    router = await vault.router()
    assert (await router.acquire(agent_item())).sealed_leases
    assert gauge(vault, "rolled_back_rows") == 0
    assert await findings(vault) == []


async def walked_once(vault: Vault) -> None:
    """Wait for the pass that every worker begins with."""
    await eventually(lambda: looked(vault), lambda found: found >= 1)


async def looked(vault: Vault) -> float:
    """Return how often both workers have walked."""
    return min(gauge(vault, "self_audits"), gauge(vault, "secret_walks"))


ROWS_LOST = {
    "a deleted key": ("DELETE FROM agent_ai_keys WHERE provider_key_id = $1", "key"),
    "a key that is hidden by its id": (
        "UPDATE agent_ai_keys SET provider_key_id = provider_key_id || 'x' WHERE provider_key_id = $1",
        "key",
    ),
    "a deleted binding": ("DELETE FROM agent_bindings WHERE agent_id = 'agent-1' AND $1 <> ''", "binding"),
}


@pytest.mark.parametrize(("edit", "kind"), ROWS_LOST.values(), ids=ROWS_LOST)
async def test_a_row_that_is_not_there_any_more_is_found(
    start_vault: Callable[..., Awaitable[Vault]], edit: str, kind: str
) -> None:
    """The log knows that it was written."""
    vault = await start_vault(health=WALKING)
    await vault.bind()
    key = await vault.working_key()
    await walked(vault)
    assert gauge(vault, "rolled_back_rows") == 0
    await vault.forge(edit, key.key_id)
    await walked(vault)
    row_id = f"key/{key.key_id}" if kind == "key" else "binding/agent-1"
    assert (row_id, "RowMissing") in await findings(vault)
    assert gauge(vault, "rolled_back_rows") >= 1


async def test_a_binding_that_was_rolled_back_is_found(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """An agent that moved is put back to its old owner; nothing else refuses that."""
    vault = await start_vault(health=WALKING)
    await vault.bind()
    moved = account_pb2.Account(owner_id="owner-2")
    before = account_pb2.Account(owner_id="owner-1")
    await vault.bind(owner_id="owner-2", account=moved, expected_account=before)
    await vault.forge("UPDATE agent_bindings SET superseded_index = 1000000")
    await vault.forge("UPDATE agent_bindings SET superseded_index = NULL WHERE owner_id = 'owner-1'")
    await walked(vault)
    assert await findings(vault) == [("binding/agent-1", "RowRolledBack")]


async def test_a_halt_that_was_undone_is_found(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """The set of halts of before is put back; nothing else refuses that."""
    vault = await start_vault(health=WALKING)
    await vault.bind()
    await vault.working_key()
    await (await vault.emergency()).Halt(halt_request(emergency_service_pb2.HaltScope(everything=True)))
    await vault.forge("UPDATE halt_sets SET superseded_index = 1000000")
    await vault.forge(
        "UPDATE halt_sets SET superseded_index = NULL WHERE audit_index = (SELECT min(audit_index) FROM halt_sets)"
    )
    assert (await (await vault.router()).acquire(agent_item())).sealed_leases
    await walked(vault)
    assert await findings(vault) == [("halts", "RowRolledBack")]


async def test_a_share_that_was_brought_back_is_found(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """A share that ended is put back; other shares of the key are sound, on whichever page they are."""
    vault = await start_vault(health=WALKING.model_copy(update={"walk_batch_max": 1}))
    keys = await vault.keys()
    for agent_id in ("agent-1", "agent-2"):
        await vault.bind(agent_id, account=account_pb2.Account(organization_id="org-1"))
    key = await vault.organization_key()
    for agent_id in ("agent-1", "agent-2"):
        await keys.ShareKey(share_request(key.key_id, agent_id))
    await keys.UnshareKey(unshare_request(key.key_id))
    await walked(vault)
    assert await findings(vault) == []
    of_agent = "WHERE agent_id = 'agent-1'"
    await vault.forge(f"UPDATE key_shares SET superseded_index = 1000000 {of_agent}")
    await vault.forge(f"UPDATE key_shares SET superseded_index = NULL {of_agent} AND NOT is_ended")
    assert (await (await vault.router()).acquire(agent_item())).sealed_leases
    await walked(vault)
    assert await findings(vault) == [(f"share/{key.key_id}/agent-1", "RowRolledBack")]


async def test_a_row_of_which_the_log_knows_nothing_is_found(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """The log was cut, and the row is newer than it."""
    vault = await start_vault(health=WALKING)
    key = await vault.working_key()
    await vault.forge("DELETE FROM audit_entries WHERE subject = 'key/' || $1", key.key_id)
    await walked(vault)
    assert (f"key/{key.key_id}", "RowUnrecorded") in await findings(vault)


async def test_a_log_cut_at_its_beginning_hides_no_rollback(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """All entries up to the revocation are deleted, as if they had been archived; authority entries never are."""
    vault = await start_vault(health=WALKING)
    key_id, _ = await roll_back(vault)
    revoked = "SELECT max(audit_index) FROM audit_entries WHERE kind = $1"
    await vault.forge(f"DELETE FROM audit_entries WHERE audit_index <= ({revoked})", int(EntryKind.KEY_REVOKED))
    await walked(vault)
    assert (f"key/{key_id}", "RowUnrecorded") in await findings(vault)
    assert gauge(vault, "rolled_back_rows") >= 1


BLANKED = {"the leaf": "leaf = ''", "the leaf and what it is found by": "leaf = '', subject = ''"}


@pytest.mark.parametrize("edit", BLANKED.values(), ids=BLANKED)
async def test_an_emptied_entry_hides_no_rollback(start_vault: Callable[..., Awaitable[Vault]], edit: str) -> None:
    """The entry of the revocation is emptied, so that the older row seems to be the newest that the log knows."""
    vault = await start_vault(health=WALKING)
    await roll_back(vault)
    await vault.forge(f"UPDATE audit_entries SET {edit} WHERE kind = $1", int(EntryKind.KEY_REVOKED))
    await walked(vault)
    assert "RowBlanked" in {what for _, what in await findings(vault)}
    assert gauge(vault, "rolled_back_rows") >= 1


async def test_what_is_sound_is_not_found(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """Rows that change while they are compared are no findings: each comparison is of one moment."""
    vault = await start_vault(health=BUSY)
    await vault.bind()
    keys = await vault.keys()
    for number in range(20):
        key = await vault.working_key(plaintext=SECRET + b"%d" % number)
        await keys.ReplaceKeySecret(
            key_service_pb2.ReplaceKeySecretRequest(
                request_id=new_id(), acting_for=owner(), actor="test", key_id=key.key_id, plaintext=SECRET
            )
        )
        if number % 2:
            await keys.RevokeKey(revoke_request(key.key_id))
    await eventually(lambda: looked(vault), lambda found: found >= 1)
    assert await findings(vault) == []
    assert gauge(vault, "rolled_back_rows") == gauge(vault, "undecryptable_secrets") == 0


async def test_a_wrapped_key_that_opens_nothing_is_found_before_it_is_needed(
    start_vault: Callable[..., Awaitable[Vault]],
) -> None:
    """Without opening a secret; the lease is refused by type, and not as if there were no key."""
    vault = await start_vault(health=WALKING)
    await vault.bind()
    key, other = await vault.working_key(), await vault.working_key(plaintext=SECRET + b"2")
    await walked(vault)
    assert gauge(vault, "secrets_by_kek_version", kek_version="1") == 2
    assert gauge(vault, "undecryptable_secrets") == 0
    await vault.forge(
        "UPDATE agent_ai_key_secrets SET wrapped_dek = (SELECT wrapped_dek FROM agent_ai_key_secrets "
        "WHERE provider_key_id = $2) WHERE provider_key_id = $1",
        key.key_id, other.key_id,
    )  # fmt: skip
    await walked(vault)
    assert gauge(vault, "undecryptable_secrets") == 1
    assert await findings(vault) == [(key.key_id, "EnvelopeCorruptError")]
    error = remote_error((await (await vault.router()).acquire(agent_item())).results[0].error)
    assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, "ENVELOPE_CORRUPT")


async def test_secrets_under_a_version_that_cannot_be_used_are_counted(
    start_vault: Callable[..., Awaitable[Vault]],
) -> None:
    """They are no corruption: the version can come back; a lease says what it waits for."""
    vault = await start_vault(health=WALKING)
    await vault.bind()
    key = await vault.working_key()
    await vault.forge(
        "UPDATE agent_ai_key_secrets SET kek_version = 9, wrapped_dek = overlay(wrapped_dek placing '\\x00000009' "
        "from 7) WHERE provider_key_id = $1",
        key.key_id,
    )
    await walked(vault)
    assert gauge(vault, "undecryptable_secrets") == 1
    assert gauge(vault, "secrets_by_kek_version", kek_version="9") == 1
    assert await findings(vault) == []
    error = remote_error((await (await vault.router()).acquire(agent_item())).results[0].error)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "KEK_UNAVAILABLE")


async def test_a_secret_that_was_put_back_is_found(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """The secret of an earlier version belongs to no row."""
    vault = await start_vault(health=WALKING)
    key = await vault.working_key(acting_for=owner(name("owner")))
    await vault.forge("UPDATE agent_ai_key_secrets SET key_version = 7 WHERE provider_key_id = $1", key.key_id)
    await walked(vault)
    assert await findings(vault) == [(key.key_id, "EnvelopeCorruptError")]
    assert gauge(vault, "undecryptable_secrets") == 1

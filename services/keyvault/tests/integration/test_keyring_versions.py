"""Several versions of a key of the ring: who wraps finds its version PRIMARY, and nobody is left with an old ring."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg

from keyvault.adapters.root_keys.file import FileRootKey
from keyvault.domain.envelope import wrapped_kek_version
from keyvault.domain.keyring import KeyPurpose, draw_key
from keyvault.usecases.hold_keyring import wrap_key
from servicekit.secrets import Secret
from services.keyvault.tests.integration.vault import SECRET, agent_item, create_request, owner
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.keyvault.tests.integration.vault import Vault

ROOT = FileRootKey(Secret(bytes.fromhex("5f" * 32)))


async def promote(vault: Vault, purpose: KeyPurpose) -> None:
    """Make a version 2 PRIMARY in the database, as another replica would."""
    made = await wrap_key("test", draw_key(purpose, version=2), ROOT)
    await vault.forge("UPDATE keyring_keys SET state = 3 WHERE purpose = $1", int(purpose))
    await vault.forge(
        "INSERT INTO keyring_keys VALUES ($1, 2, 2, $2, $3, $4)",
        int(purpose),
        made.root_key_id,
        made.wrapped_key,
        made.canary,
    )


async def test_who_wraps_under_an_old_primary_reloads_and_wraps_anew(vault: Vault) -> None:
    """A replica that has not heard of a promotion stores nothing under the old version; old envelopes still open."""
    await vault.bind()
    await vault.bind("agent-2", "owner-2")
    first = await vault.working_key()
    await promote(vault, KeyPurpose.KEK)
    second = await vault.working_key(acting_for=owner("owner-2"), plaintext=SECRET + b"2")
    rows = await vault.sql("SELECT provider_key_id, wrapped_dek, kek_version FROM agent_ai_key_secrets")
    versions = {row["provider_key_id"]: (row["kek_version"], wrapped_kek_version(row["wrapped_dek"])) for row in rows}
    assert versions == {first.key_id: (1, 1), second.key_id: (2, 2)}
    router = await vault.router()
    leased = router.open(await router.acquire(agent_item(), agent_item("agent-2")))
    assert [lease.secret for lease in leased] == [SECRET, SECRET + b"2"]


async def test_who_signs_under_an_old_primary_reloads_and_signs_anew(vault: Vault) -> None:
    """Rows of both HMAC keys are believed; new ones carry the new version."""
    await vault.bind()
    await vault.working_key()
    await promote(vault, KeyPurpose.AUTHORITY_MAC)
    await vault.bind("agent-2")
    rows = await vault.sql("SELECT agent_id, mac_key_version FROM agent_bindings ORDER BY agent_id")
    assert [(row["agent_id"], row["mac_key_version"]) for row in rows] == [("agent-1", 1), ("agent-2", 2)]
    router = await vault.router()
    response = await router.acquire(agent_item(), agent_item("agent-2"))
    assert len(router.open(response)) == 2


async def test_an_unknown_version_reloads_the_keyring(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """A replica that meets what another wrapped and signed under newer keys reads the ring again and goes on."""
    here, there = await start_vault(), await start_vault()
    await here.bind()
    for purpose in (KeyPurpose.KEK, KeyPurpose.AUTHORITY_MAC):
        await promote(here, purpose)
    await here.working_key()
    router = await there.router()
    assert router.open(await router.acquire(agent_item()))[0].secret == SECRET


async def test_a_promotion_waits_for_whoever_wraps(vault: Vault) -> None:
    """A version cannot change its state under a transaction that has wrapped by it: no orphan is committed later."""
    await (await vault.keys()).CreateKey(create_request())
    wrapping = await asyncpg.connect(vault.dsn)
    promoting = await asyncpg.connect(vault.dsn)
    transaction = wrapping.transaction()
    await transaction.start()
    assert await wrapping.fetchval("SELECT share_primary_keys(1, 1)")
    update = asyncio.create_task(promoting.execute("UPDATE keyring_keys SET state = 3 WHERE purpose = 1"))
    await eventually(vault.waiting, bool)
    assert not update.done()
    await transaction.commit()
    await asyncio.wait_for(update, 10)
    assert not await wrapping.fetchval("SELECT share_primary_keys(1, 1)")
    await wrapping.close()
    await promoting.close()

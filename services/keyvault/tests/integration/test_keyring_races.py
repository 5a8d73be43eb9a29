"""What the rules of promotion stop, shown by taking each rule out of the database."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

from keyvault.settings import KeyringSettings
from services.keyvault.tests.integration.test_keyring_service import FAST, MIGRATION, administrator
from services.keyvault.tests.integration.vault import Vault, refusal
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LIVE_RULE = "last_seen > clock_timestamp() - p_live AND NOT (p_purpose || '/' || p_version) = ANY (proved)"
SELDOM = KeyringSettings(heartbeat=timedelta(hours=1), replica_bound=timedelta(hours=2))
PATIENT = KeyringSettings(heartbeat=timedelta(milliseconds=50), replica_bound=timedelta(hours=1))


async def without(vault: Vault, rule: str, other: str) -> None:
    """Put another rule in the place of promotion's own."""
    text = await asyncio.to_thread(MIGRATION.read_text)
    begin = text.index("CREATE FUNCTION promote_keyring_key")
    function = text[begin : text.index("END $$;", begin) + len("END $$;")]
    assert function.count(rule) == 1
    await vault.forge(function.replace(rule, other).replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))


async def two_replicas(here: Vault) -> None:
    """Wait until both have said that they are alive."""
    await eventually(lambda: here.sql("SELECT 1 FROM keyring_replicas"), lambda rows: len(rows) == 2)


async def test_without_proofs_a_version_is_promoted_that_a_replica_lacks(
    start_vault: Callable[..., Awaitable[Vault]],
) -> None:
    """The negative control of the proof: the replica that never read the version does not hinder it."""
    here = await start_vault(keyring=PATIENT)
    await start_vault(keyring=SELDOM)
    admin = await administrator(here)
    await two_replicas(here)
    staged = await admin.stage()
    await eventually(admin.listed, lambda listed: len(listed[2].proved_by) == 1)
    assert (await refusal(admin.call("PromoteKey", staged.version))).reason == "REPLICA_NOT_READY"
    await without(here, LIVE_RULE, "false")
    await admin.call("PromoteKey", staged.version)
    lacking = await here.sql("SELECT 1 FROM keyring_replicas WHERE NOT '1/2' = ANY (proved)")
    assert len(lacking) == 1


async def test_without_a_bound_a_stopped_replica_freezes_the_fleet(
    start_vault: Callable[..., Awaitable[Vault]],
) -> None:
    """The negative control of the bound: one that says nothing any more would have its say for ever."""
    here = await start_vault(keyring=FAST)
    await start_vault(keyring=SELDOM)
    admin = await administrator(here)
    await two_replicas(here)
    await without(here, LIVE_RULE, LIVE_RULE.removeprefix("last_seen > clock_timestamp() - p_live AND "))
    staged = await admin.stage()
    await asyncio.sleep(2 * FAST.replica_bound.total_seconds())
    assert (await refusal(admin.call("PromoteKey", staged.version))).reason == "REPLICA_NOT_READY"

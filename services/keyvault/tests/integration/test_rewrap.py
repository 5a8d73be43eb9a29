"""RewrapKeys and the process that does it: every secret comes under the PRIMARY KEK, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from byok.keyvault.v1 import keyring_service_pb2 as contract
from keyvault.domain.audit_log import EntryKind
from keyvault.domain.errors import EnvelopeCorruptError
from keyvault.wiring.rewrap import rewrap
from servicekit.metrics import Metrics
from services.keyvault.tests.integration.test_keyring_service import FAST, Administrator, administrator, entries
from services.keyvault.tests.integration.vault import SECRET, Vault, agent_item, owner, refusal
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

COMPLETED, PAUSED, WAITING = (
    contract.REWRAP_STATE_COMPLETED,
    contract.REWRAP_STATE_PAUSED,
    contract.REWRAP_STATE_WAITING,
)
KEYS = 5


@pytest.fixture
async def vault(start_vault: Callable[..., Awaitable[Vault]]) -> Vault:
    """Return a replica with keys under version 1, and version 2 PRIMARY."""
    vault = await start_vault(keyring=FAST)
    await vault.bind()
    for number in range(KEYS - 1):
        await vault.working_key(acting_for=owner(f"owner-{number + 2}"))
    await vault.working_key()
    await (await administrator(vault)).promoted()
    return vault


async def ask(admin: Administrator, **fields: Any) -> contract.RewrapKeysResponse:
    """Ask for a pass, or how it stands."""
    response: contract.RewrapKeysResponse = await admin.stub.RewrapKeys(
        contract.RewrapKeysRequest(actor="ada", **fields)
    )
    return response


async def work(vault: Vault) -> None:
    """Be the process that rewraps, until nothing is wanted."""
    await rewrap(vault.settings, asyncio.Event(), Metrics("rewrap"))


@contextlib.asynccontextmanager
async def working(vault: Vault) -> AsyncIterator[asyncio.Task[None]]:
    """Have the process run beside."""
    task = asyncio.create_task(work(vault))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def versions(vault: Vault) -> dict[int, int]:
    """Return how many secrets are under each version."""
    rows = await vault.sql("SELECT kek_version, count(*) AS n FROM agent_ai_key_secrets GROUP BY 1")
    return {row["kek_version"]: row["n"] for row in rows}


async def test_every_secret_comes_under_the_primary_and_opens(vault: Vault) -> None:
    """Its end is an entry of the log, after which the old version can be disabled."""
    admin = await administrator(vault)
    router = await vault.router()
    asked = await ask(admin, start=True)
    assert (asked.state, asked.kek_version, asked.remaining) == (WAITING, 2, KEYS)
    await work(vault)
    assert await versions(vault) == {2: KEYS}
    done = await ask(admin)
    assert (done.state, done.done, done.remaining, done.failed) == (COMPLETED, KEYS, 0, 0)
    (completed,) = await vault.sql("SELECT audit_index FROM audit_entries WHERE kind = $1", EntryKind.REWRAP_COMPLETED)
    assert completed["audit_index"] == done.completion_index
    assert (await entries(vault, EntryKind.REWRAP_COMPLETED))[0]["left_under_other_versions"] == "0"
    await admin.call("DisableKey", 1)
    assert router.open(await router.acquire(agent_item()))[0].secret == SECRET


async def test_a_pass_waits_while_it_is_paused(vault: Vault) -> None:
    """And goes on afterwards; who asks is in the log, and somebody must."""
    admin = await administrator(vault)
    await ask(admin, start=True)
    assert (await ask(admin, pause=True)).state == PAUSED
    async with working(vault) as task:
        await eventually(
            lambda: vault.sql("SELECT worker FROM rewraps WHERE worker <> ''"), lambda rows: len(rows) == 1
        )
        assert await versions(vault) == {1: KEYS}
        await ask(admin, pause=False)
        await task
    assert await versions(vault) == {2: KEYS}
    assert [each.get("pause") for each in await entries(vault, EntryKind.KEYRING_CHANGED)][-2:] == ["true", "false"]
    nobody = admin.stub.RewrapKeys(contract.RewrapKeysRequest(start=True))
    assert (await refusal(nobody)).reason == "INVALID_ARGUMENT"


async def test_two_processes_share_one_pass(vault: Vault) -> None:
    """One works and the other waits; nothing is wrapped twice, and there is one completion."""
    admin = await administrator(vault)
    await ask(admin, start=True)
    await asyncio.gather(work(vault), work(vault))
    assert await versions(vault) == {2: KEYS}
    assert (await ask(admin)).done == KEYS
    assert len(await entries(vault, EntryKind.REWRAP_COMPLETED)) == 1


async def test_a_process_takes_over_from_one_that_died(vault: Vault) -> None:
    """When the claim has run out, not before, and where the dead one was."""
    admin = await administrator(vault)
    await ask(admin, start=True)
    first = (await vault.sql("SELECT provider_key_id FROM agent_ai_key_secrets ORDER BY 1"))[0]["provider_key_id"]
    claim = "UPDATE rewraps SET worker = 'dead', worker_until = now() + $1::interval, after_key_id = $2"
    await vault.forge(claim.replace("$1::interval", "interval '1 hour'").replace("$2", f"'{first}'"))
    async with working(vault) as task:
        await eventually(lambda: ask(admin), lambda stands: stands.state == contract.REWRAP_STATE_RUNNING)
        assert await versions(vault) == {1: KEYS}
        await vault.forge("UPDATE rewraps SET worker_until = now(), after_key_version = 1")
        await task
    # What lay behind the dead one's cursor was found by the count, and wrapped in a second walk.
    assert await versions(vault) == {2: KEYS}


async def test_a_secret_that_does_not_open_keeps_a_pass_from_completing(vault: Vault) -> None:
    """It is in the log and counted, the others are done, and the old version cannot be retired."""
    admin = await administrator(vault)
    await vault.forge(
        "UPDATE agent_ai_key_secrets SET wrapped_dek = set_byte(wrapped_dek, 120, get_byte(wrapped_dek, 120) # 1) "
        "WHERE provider_key_id = (SELECT min(provider_key_id) FROM agent_ai_key_secrets)"
    )
    await ask(admin, start=True)
    with pytest.raises(EnvelopeCorruptError):
        await work(vault)
    assert await versions(vault) == {1: 1, 2: KEYS - 1}
    stands = await ask(admin)
    assert (stands.failed, stands.completion_index) == (1, 0)
    assert await entries(vault, EntryKind.CORRUPTION_FOUND)
    assert (await refusal(admin.call("DisableKey", 1))).reason == "KEYRING_STATE"


async def test_a_promotion_begins_the_pass_anew(vault: Vault) -> None:
    """A pass that was asked for before goes to the version that is PRIMARY when it is worked at."""
    admin = await administrator(vault)
    await ask(admin, start=True)
    assert await admin.promoted() == 3
    await work(vault)
    assert await versions(vault) == {3: KEYS}


async def test_a_pass_that_loses_the_race_against_a_replacement_writes_nothing(vault: Vault) -> None:
    """Each DEK is stored only in the place of what was unwrapped."""
    admin = await administrator(vault)
    await ask(admin, start=True)
    (row,) = await vault.sql("SELECT * FROM agent_ai_key_secrets ORDER BY provider_key_id LIMIT 1")
    await vault.sql("SELECT 1 FROM claim_rewrap('me', interval '1 minute')")
    stored = await vault.sql(
        "SELECT rewrap_secrets('me', interval '1 minute', 2, ARRAY[$1], ARRAY[$2::bigint], ARRAY[$3::bytea], "
        "ARRAY['\\x00'::bytea], $1, $2, 0, 0) AS status",
        row["provider_key_id"],
        row["key_version"],
        b"what was there before",
    )
    assert stored[0]["status"] == "WRITTEN"
    assert (await ask(admin)).done == 0
    assert await versions(vault) == {1: KEYS}

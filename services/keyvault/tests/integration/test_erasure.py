"""The erasure of an owner: at once, for good, of nobody else, and finished whatever stops it."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from byok.keyvault.v1 import key_service_pb2, lease_pb2, provider_key_pb2
from byok.type.v1 import account_pb2
from keyvault.domain.audit_log import EntryKind, decode_leaf
from keyvault.settings import HealthSettings, KeySettings
from servicekit.clock import SystemClock
from servicekit.wire import remote_error
from services.keyvault.tests.integration.vault import (
    SECRET,
    agent_item,
    create_request,
    name,
    new_id,
    owner,
    refusal,
    validation_item,
)
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.keyvault.tests.integration.vault import Vault

OPERATOR = account_pb2.Principal(operator_id="operator-1")
LIVE, ERASED = key_service_pb2.ERASURE_STATE_ERASED_LIVE, key_service_pb2.ERASURE_STATE_ERASED
# What a crash after some revocations leaves: from the tenth on, none can be written.
BROKEN = """
CREATE FUNCTION break_off() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT count(*) FROM agent_ai_keys WHERE state = 7) >= 10 THEN
        RAISE EXCEPTION 'broken off';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER break_off BEFORE INSERT ON agent_ai_keys FOR EACH ROW WHEN (NEW.state = 7) EXECUTE FUNCTION break_off();
"""


def erase_request(owner_id: str, **fields: Any) -> key_service_pb2.EraseOwnerRequest:
    """Return a request to erase an owner, by that owner."""
    usual: dict[str, Any] = {
        "request_id": new_id(),
        "acting_for": owner(owner_id),
        "actor": "test",
        "owner_id": owner_id,
    }
    return key_service_pb2.EraseOwnerRequest(**(usual | fields))


async def get_erasure(vault: Vault, owner_id: str, acting_for: account_pb2.Principal | None = None) -> Any:
    """Return the erasure of an owner."""
    request = key_service_pb2.GetErasureRequest(acting_for=acting_for or owner(owner_id), owner_id=owner_id)
    return (await (await vault.keys()).GetErasure(request)).erasure


async def entries(vault: Vault, kind: EntryKind, owner_id: str) -> list[int]:
    """Return the indexes of the entries of a kind about an owner."""
    rows = await vault.sql("SELECT audit_index, leaf FROM audit_entries WHERE kind = $1 ORDER BY 1", int(kind))
    decoded = [(row["audit_index"], decode_leaf(row["leaf"])) for row in rows]
    return [index for index, entry in decoded if entry.account is not None and entry.account.party_id == owner_id]


async def owner_with_keys(vault: Vault, count: int) -> tuple[str, str]:
    """Return a new owner with an agent and working keys, of which the first one serves."""
    owner_id, agent_id = name("owner"), name("agent")
    await vault.bind(agent_id, owner_id)
    router, keys = await vault.router(), await vault.keys()
    for number in range(count):
        request = create_request(acting_for=owner(owner_id), plaintext=SECRET + b"%d" % number)
        created = await keys.CreateKey(request)
        if number == 0:
            await router.validate(created.key.key_id)
    return owner_id, agent_id


async def secrets_of(vault: Vault, owner_id: str) -> int:
    """Return how many secrets of an owner are stored."""
    rows = await vault.sql(
        "SELECT count(*) FROM agent_ai_key_secrets s WHERE EXISTS (SELECT FROM agent_ai_keys k "
        "WHERE k.provider_key_id = s.provider_key_id AND k.owner_id = $1)",
        owner_id,
    )
    return int(rows[0][0])


@pytest.mark.asyncio(loop_scope="session")
async def test_an_erased_owner_has_nothing_left_and_nobody_else_less(shared_vault: Vault) -> None:
    """Secrets are gone, keys are revoked, leases fail, the log says so; another owner's key still serves."""
    vault = shared_vault
    (mine, agent), (theirs, their_agent) = await owner_with_keys(vault, 3), await owner_with_keys(vault, 1)
    router, keys = await vault.router(), await vault.keys()
    assert (await router.acquire(agent_item(agent))).results[0].HasField("lease")
    erasure = (await keys.EraseOwner(erase_request(mine))).erasure
    assert (erasure.owner_id, erasure.erased_keys) == (mine, 3)
    assert await secrets_of(vault, mine) == 0
    listing = key_service_pb2.ListKeysRequest(acting_for=owner(mine), include_revoked=True)
    listed = (await keys.ListKeys(listing)).keys
    assert [key.state for key in listed] == [provider_key_pb2.KEY_STATE_REVOKED] * 3
    response = await router.acquire(agent_item(agent), agent_item(their_agent), validation_item(listed[0].key_id, mine))
    assert response.results[0].no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_KEY
    assert response.results[1].HasField("lease")
    assert remote_error(response.results[2].error).reason == "PROVIDER_KEY_REVOKED"
    assert [sealed.secret for sealed in router.open(response)] == [SECRET + b"0"]
    assert await entries(vault, EntryKind.OWNER_ERASED, mine) == [erasure.audit_index]
    assert len(await entries(vault, EntryKind.KEY_REVOKED, mine)) == 3
    assert not await entries(vault, EntryKind.KEY_REVOKED, theirs)


@pytest.mark.asyncio(loop_scope="session")
async def test_an_erasure_is_one_however_often_it_is_asked_for(shared_vault: Vault) -> None:
    """The same request, and another one, get what there is; a key that is added afterwards is not theirs to take."""
    owner_id, agent_id = await owner_with_keys(shared_vault, 2)
    keys, router = await shared_vault.keys(), await shared_vault.router()
    request = erase_request(owner_id)
    first = await keys.EraseOwner(request)
    for again in (request, erase_request(owner_id), erase_request(owner_id, acting_for=owner(owner_id))):
        assert (await keys.EraseOwner(again)).erasure == first.erasure
    key = await shared_vault.working_key(acting_for=owner(owner_id))
    assert (await keys.EraseOwner(request)).erasure == first.erasure
    assert (await router.acquire(agent_item(agent_id))).results[0].lease.key_id == key.key_id
    second = (await keys.EraseOwner(erase_request(owner_id))).erasure
    assert (second.erased_keys, second.audit_index > first.erasure.audit_index) == (1, True)
    assert not (await router.acquire(agent_item(agent_id))).sealed_leases


@pytest.mark.asyncio(loop_scope="session")
async def test_another_owner_neither_erases_nor_learns_of_it(shared_vault: Vault) -> None:
    """Erased, not erased and unknown owners are told in the same words; an operator may erase and see."""
    owner_id, _ = await owner_with_keys(shared_vault, 1)
    keys = await shared_vault.keys()
    stranger = owner(name("owner"))
    told = set()
    for whose in (owner_id, name("owner")):
        for call in (
            keys.EraseOwner(erase_request(whose, acting_for=stranger)),
            get_erasure(shared_vault, whose, stranger),
        ):
            error = await refusal(call)
            assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "ERASURE_NOT_FOUND")
            told.add(error.message)
    assert (await refusal(get_erasure(shared_vault, owner_id))).reason == "ERASURE_NOT_FOUND"
    assert len(told) == 1
    assert await secrets_of(shared_vault, owner_id) == 1
    operators = await shared_vault.keys("operator")
    await operators.EraseOwner(erase_request(owner_id, acting_for=OPERATOR))
    seen = await operators.GetErasure(key_service_pb2.GetErasureRequest(acting_for=OPERATOR, owner_id=owner_id))
    assert seen.erasure == await get_erasure(shared_vault, owner_id)


@pytest.mark.asyncio(loop_scope="session")
async def test_an_owner_is_erased_when_the_last_backup_has_expired(shared_vault: Vault) -> None:
    """Until then the date is shown: what opens the keys is gone from here, and not from there."""
    owner_id, _ = await owner_with_keys(shared_vault, 1)
    now = SystemClock().now()
    ends = now + timedelta(seconds=2)
    for backup_id, taken, expires in (("a", now - timedelta(days=1), ends), ("b", now, ends - timedelta(seconds=1))):
        await shared_vault.forge(
            "INSERT INTO backups (backup_id, snapshot_time, expire_time) VALUES ($1, $2, $3)",
            f"{owner_id}-{backup_id}", taken, expires,
        )  # fmt: skip
    erasure = (await (await shared_vault.keys()).EraseOwner(erase_request(owner_id))).erasure
    assert erasure.state == LIVE
    assert erasure.backups_expire_time.ToDatetime(tzinfo=UTC) == ends
    gone = await eventually(lambda: get_erasure(shared_vault, owner_id), lambda found: found.state == ERASED)
    assert not gone.HasField("backups_expire_time")
    assert SystemClock().now() >= ends


async def test_an_erasure_that_breaks_off_leaves_no_secret(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """All secrets go before the first revocation; repeating the request does the rest."""
    vault = await start_vault(health=HealthSettings(interval=timedelta(hours=1)))
    owner_id, agent_id = await owner_with_keys(vault, 30)
    keys, router = await vault.keys(), await vault.router()
    await vault.forge(BROKEN)
    request = erase_request(owner_id)
    assert (await refusal(keys.EraseOwner(request))).reason == "AUDIT_UNAVAILABLE"
    assert await secrets_of(vault, owner_id) == 0
    assert len(await entries(vault, EntryKind.KEY_REVOKED, owner_id)) == 10
    assert (await get_erasure(vault, owner_id)).state == LIVE
    assert not (await router.acquire(agent_item(agent_id))).sealed_leases
    await vault.sql("DROP TRIGGER break_off ON agent_ai_keys")
    erasure = (await keys.EraseOwner(request)).erasure
    assert (erasure.erased_keys, erasure.state) == (30, ERASED)
    assert len(await entries(vault, EntryKind.KEY_REVOKED, owner_id)) == 30
    assert len(await entries(vault, EntryKind.OWNER_ERASED, owner_id)) == 1


async def test_a_worker_finishes_what_broke_off(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """Nobody has to ask again; of two replicas that try, each key is revoked once."""
    health = HealthSettings(interval=timedelta(milliseconds=100))
    vault, _ = await start_vault(health=health), await start_vault(health=health)
    owner_id, _ = await owner_with_keys(vault, 30)
    await vault.forge(BROKEN)
    await refusal((await vault.keys()).EraseOwner(erase_request(owner_id)))
    await vault.sql("DROP TRIGGER break_off ON agent_ai_keys")
    erasure = await eventually(lambda: get_erasure(vault, owner_id), lambda found: found.state == ERASED)
    assert erasure.erased_keys == 30
    assert len(await entries(vault, EntryKind.KEY_REVOKED, owner_id)) == 30


async def test_a_big_owner_is_erased_in_batches(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """More keys than one batch holds are all revoked, with one entry each, and all secrets go at once."""
    vault = await start_vault(keys=KeySettings(per_account_max=1000))
    owner_id, _ = await owner_with_keys(vault, 250)
    erasure = (await (await vault.keys()).EraseOwner(erase_request(owner_id))).erasure
    assert (erasure.erased_keys, await secrets_of(vault, owner_id)) == (250, 0)
    revoked = await entries(vault, EntryKind.KEY_REVOKED, owner_id)
    assert (len(revoked), min(revoked) > erasure.audit_index) == (250, True)

"""Keys that end at a time: refused from that moment, ended by a worker, noticed beforehand, renewed by their owner."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from byok.keyvault.v1 import key_service_pb2, lease_pb2, lease_service_pb2, provider_key_pb2
from keyvault.domain.audit_log import EntryKind, decode_leaf
from keyvault.settings import HealthSettings
from servicekit.clock import SystemClock
from services.keyvault.tests.integration.test_bad_input import violations
from services.keyvault.tests.integration.vault import SECRET, agent_item, name, new_id, owner
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.keyvault.tests.integration.vault import Vault

OFTEN = HealthSettings(interval=timedelta(milliseconds=100))
NEVER = HealthSettings(interval=timedelta(hours=1))
HOUR = timedelta(hours=1)


def in_time(delay: timedelta) -> Timestamp:
    """Return a time from now."""
    timestamp = Timestamp()
    timestamp.FromDatetime(SystemClock().now() + delay)
    return timestamp


def update(key: provider_key_pb2.ProviderKey, *paths: str, **fields: Any) -> key_service_pb2.UpdateKeyRequest:
    """Return a change of a key."""
    usual: dict[str, Any] = {
        "request_id": new_id(),
        "acting_for": owner(),
        "actor": "test",
        "key_id": key.key_id,
        "update_mask": FieldMask(paths=paths),
    }
    return key_service_pb2.UpdateKeyRequest(**(usual | fields))


async def entries(vault: Vault, kind: EntryKind) -> list[dict[str, str]]:
    """Return the details of all entries of a kind, with the time of each."""
    rows = await vault.sql("SELECT leaf FROM audit_entries WHERE kind = $1 ORDER BY audit_index", int(kind))
    decoded = [decode_leaf(row["leaf"]) for row in rows]
    return [dict(entry.details) | {"state": str(entry.key_state)} for entry in decoded]


async def state(vault: Vault, key: provider_key_pb2.ProviderKey) -> int:
    """Return the state that a key says it is in."""
    request = key_service_pb2.GetKeyRequest(acting_for=owner(), key_id=key.key_id)
    response = await (await vault.keys()).GetKey(request)
    number: int = response.key.state
    return number


async def test_a_key_is_refused_from_its_very_time_on(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """Whatever its state says by then: no worker runs here. A lease before that is granted."""
    vault = await start_vault(health=NEVER)
    await vault.bind()
    key = await vault.working_key(expire_time=in_time(timedelta(seconds=2)))
    router = await vault.router()
    expires = key.expire_time.ToDatetime(tzinfo=UTC)

    async def lease() -> tuple[datetime, lease_pb2.LeaseResult, datetime]:
        began = SystemClock().now()
        result = (await router.acquire(agent_item())).results[0]
        return began, result, SystemClock().now()

    granted_before, refused_after = 0, 0
    while refused_after < 3:
        began, result, ended = await lease()
        if ended < expires:
            assert result.HasField("lease")
            granted_before += 1
        if began >= expires:
            assert result.no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_USABLE_KEY
            refused_after += 1
    assert granted_before
    assert await state(vault, key) == provider_key_pb2.KEY_STATE_ACTIVE


async def test_an_expired_key_is_ended_once_and_tested_only(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """By one of two replicas; a test call is allowed, and brings nothing back."""
    vault, _ = await start_vault(health=OFTEN), await start_vault(health=OFTEN)
    await vault.bind()
    key = await vault.working_key(expire_time=in_time(timedelta(seconds=1)))
    expired = provider_key_pb2.KEY_STATE_EXPIRED
    await eventually(lambda: state(vault, key), lambda found: found == expired)
    changes = [entry for entry in await entries(vault, EntryKind.KEY_STATE_CHANGED) if "cause" in entry]
    assert changes == [{"cause": "EXPIRED", "state_before": "ACTIVE", "state": str(expired)}]
    router = await vault.router()
    result = (await router.acquire(agent_item())).results[0]
    assert result.no_usable_key.cause == lease_pb2.NO_KEY_CAUSE_NO_USABLE_KEY
    for verdict in (lease_service_pb2.VALIDATION_VERDICT_VALID, lease_service_pb2.VALIDATION_VERDICT_REJECTED):
        assert (await router.validate(key.key_id, verdict=verdict)).state == expired


async def test_an_owner_brings_an_expired_key_back(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """A later time or another secret make it PENDING_VALIDATION; the time that has passed was the old secret's."""
    vault = await start_vault(health=OFTEN)
    keys, router = await vault.keys(), await vault.router()
    soon = timedelta(milliseconds=300)
    key, other = [await vault.working_key(expire_time=in_time(soon), plaintext=SECRET + n) for n in (b"1", b"2")]
    expired = provider_key_pb2.KEY_STATE_EXPIRED
    for each in (key, other):
        await eventually(partial(state, vault, each), lambda found: found == expired)
    later = (await keys.UpdateKey(update(key, "expire_time", expire_time=in_time(HOUR)))).key
    replaced = await keys.ReplaceKeySecret(
        key_service_pb2.ReplaceKeySecretRequest(
            request_id=new_id(), acting_for=owner(), actor="test", key_id=other.key_id, plaintext=SECRET + b"3"
        )
    )
    for renewed in (later, replaced.key):
        assert renewed.state == provider_key_pb2.KEY_STATE_PENDING_VALIDATION
        assert (await router.validate(renewed.key_id)).state == provider_key_pb2.KEY_STATE_ACTIVE
    assert not replaced.key.HasField("expire_time")
    never = (await keys.UpdateKey(update(key, "expire_time"))).key
    assert (never.HasField("expire_time"), never.state) == (False, provider_key_pb2.KEY_STATE_ACTIVE)


async def test_an_owner_is_told_once_that_a_key_will_expire(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """For each time and threshold, by whichever replica, however often the key changes meanwhile."""
    vault, _ = await start_vault(health=OFTEN), await start_vault(health=OFTEN)
    keys = await vault.keys()
    key = await vault.working_key(expire_time=in_time(12 * HOUR))

    async def days() -> list[str]:
        return [entry["days"] for entry in await entries(vault, EntryKind.KEY_EXPIRING)]

    await eventually(days, lambda found: found == ["1"])
    await keys.UpdateKey(update(key, "label", label="other"))
    await keys.UpdateKey(update(key, "expire_time", expire_time=in_time(timedelta(days=10))))
    await eventually(days, lambda found: found == ["1", "14"])
    await keys.UpdateKey(update(key, "label", label="another"))
    position = (await vault.sql("SELECT last_index FROM audit_head"))[0][0]

    async def come() -> int:
        rows = await vault.sql("SELECT audit_index FROM worker_positions WHERE worker = 'key_checks'")
        return int(rows[0][0])

    await eventually(come, lambda found: found >= position)
    pending = "SELECT count(*) FROM agent_ai_key_checks WHERE next_notice_time <= now()"
    await eventually(lambda: vault.sql(pending), lambda rows: rows[0][0] == 0)
    assert await days() == ["1", "14"]


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize(
    ("time", "reason"),
    [
        (Timestamp(seconds=1), "TIME_NOT_IN_FUTURE"),
        (Timestamp(seconds=-1), "TIME_NOT_IN_FUTURE"),
        (Timestamp(seconds=2**60), "OUT_OF_RANGE"),
    ],
)
async def test_a_time_that_has_passed_is_refused(shared_vault: Vault, time: Timestamp, reason: str) -> None:
    """On creation and on update, with what to send instead."""
    keys = await shared_vault.keys()
    mine = owner(name("owner"))
    key = await shared_vault.working_key(acting_for=mine)
    create = key_service_pb2.CreateKeyRequest(
        request_id=new_id(),
        acting_for=mine,
        actor="test",
        scope=provider_key_pb2.KEY_SCOPE_OWNER,
        provider="anthropic",
        plaintext=SECRET,
        expire_time=time,
    )
    for call in (
        keys.CreateKey(create),
        keys.UpdateKey(update(key, "expire_time", expire_time=time, acting_for=mine)),
    ):
        assert await violations(call) == {"expire_time": reason}


@pytest.mark.asyncio(loop_scope="session")
async def test_an_omission_does_not_loosen_custody(shared_vault: Vault) -> None:
    """Custody in the mask without a value is refused: it made a STRICT key CACHED."""
    keys = await shared_vault.keys()
    mine = owner(name("owner"))
    key = await shared_vault.working_key(acting_for=mine, custody=provider_key_pb2.CUSTODY_STRICT)
    assert await violations(keys.UpdateKey(update(key, "custody", acting_for=mine))) == {"custody": "REQUIRED"}
    loosened = update(key, "custody", custody=provider_key_pb2.CUSTODY_CACHED, acting_for=mine)
    assert (await keys.UpdateKey(loosened)).key.custody == provider_key_pb2.CUSTODY_CACHED

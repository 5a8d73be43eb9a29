"""Whoever wrote to the database would keep owners from being told: no edit takes a key off the list unnoticed."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc

from byok.keyvault.v1 import exposure_service_pb2, exposure_service_pb2_grpc
from keyvault.domain.audit_log import EntryKind, decode_leaf, encode_leaf
from keyvault.domain.leaf_seals import LeafSealer
from servicekit.clock import SystemClock
from servicekit.wire import error_from_rpc
from services.keyvault.tests.integration.vault import Vault, agent_item, name, owner

if TYPE_CHECKING:
    from datetime import datetime

    import pytest

ROUTER = "spiffe://byok.local/ns/byok/sa/router"
NONE = exposure_service_pb2.EXPOSURE_REMEDY_NONE
REPLACED = exposure_service_pb2.EXPOSURE_REMEDY_REPLACED


async def _listed(vault: Vault, start: datetime, caller: str = "") -> tuple[dict[str, int], str]:
    """Return the remedies of the keys that were listed, and how the list ended."""
    stub: Any = exposure_service_pb2_grpc.ExposureServiceStub(await vault.channel("operator"))
    request = exposure_service_pb2.ListExposedKeysRequest(caller=caller)
    request.start_time.FromDatetime(start)
    request.end_time.FromDatetime(SystemClock().now())
    found: dict[str, int] = {}
    try:
        async for answer in stub.ListExposedKeys(request):
            found |= {key.key.key_id: key.remedy for key in answer.keys}
    except grpc.aio.AioRpcError as error:
        return found, error_from_rpc(error).message
    return found, ""


async def test_an_edited_row_is_named_after_all_others(vault: Vault) -> None:
    """It is no reason to tell nobody."""
    start = SystemClock().now()
    keys = [await vault.working_key(acting_for=owner(name("owner"))) for _ in range(3)]
    edited = keys[1].key_id
    await vault.forge("UPDATE agent_ai_keys SET priority = 9 WHERE provider_key_id = $1", edited)
    found, ended = await _listed(vault, start)
    assert found == {keys[0].key_id: NONE, keys[2].key_id: NONE}
    assert edited in ended


async def test_a_deleted_row_of_a_leased_key_is_named(vault: Vault) -> None:
    """The log says that a stolen Router leased it."""
    start = SystemClock().now()
    await vault.bind()
    key = await vault.working_key()
    await (await vault.router()).acquire(agent_item())
    await vault.forge("DELETE FROM agent_ai_keys WHERE provider_key_id = $1", key.key_id)
    found, ended = await _listed(vault, start, ROUTER)
    assert not found
    assert key.key_id in ended


async def _remedy_after_an_inserted_replacement(vault: Vault) -> int:
    start = SystemClock().now()
    key = await vault.working_key()
    subject = f"key/{key.key_id}"
    rows = await vault.sql("SELECT leaf FROM audit_entries WHERE subject = $1 ORDER BY audit_index LIMIT 1", subject)
    later = SystemClock().now() + timedelta(hours=1)
    forged = replace(decode_leaf(rows[0]["leaf"]), kind=EntryKind.KEY_SECRET_REPLACED, time=later)
    await vault.forge(
        "SELECT append_audit_entries(ARRAY[$1::smallint], ARRAY[$2], ARRAY[$3::bytea])",
        int(forged.kind),
        subject,
        encode_leaf(forged, key_version=1),
    )
    found, _ = await _listed(vault, start)
    return found[key.key_id]


async def test_an_inserted_entry_replaces_no_secret(vault: Vault) -> None:
    """The key stays on the list of those that its owner must replace."""
    assert await _remedy_after_an_inserted_replacement(vault) == NONE


async def test_without_seals_an_inserted_entry_hides_a_key(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control."""
    monkeypatch.setattr(LeafSealer, "check", lambda *_args, **_columns: None)
    assert await _remedy_after_an_inserted_replacement(vault) == REPLACED

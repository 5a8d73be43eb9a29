"""Somebody edits the log with SQL: VerifyLog finds it and says where, and a sound log gives no finding."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import pytest

from byok.keyvault.v1 import audit_service_pb2, audit_service_pb2_grpc
from keyvault.api import audit_servicer
from keyvault.domain.log_verification import ALL_CHECKS, FindingKind, LogCheck
from servicekit.wire import error_from_rpc
from services.keyvault.tests.integration.vault import agent_item, refusal

if TYPE_CHECKING:
    from services.keyvault.tests.integration.vault import Vault

Kinds = audit_service_pb2.LogFindingKind
LEASES: Final = 300
EDITED: Final = 100


@dataclass(frozen=True)
class Attack:
    """One edit in SQL, what must be found of it and where; `at` None: at the end of the log."""

    sql: str
    kind: FindingKind
    at: int | None = EDITED
    row: str = ""
    is_pinned: bool = False


UPDATED: Final = "UPDATE audit_entries SET"
GENUINE: Final = f"(SELECT leaf FROM audit_entries WHERE audit_index = {EDITED - 1})"
ATTACKS: Final = {
    "a leaf edited": Attack(
        f"{UPDATED} leaf = set_byte(leaf, 60, 1 + get_byte(leaf, 60) % 7) WHERE audit_index = {EDITED}",
        FindingKind.LEAF_EDITED,
    ),
    "a leaf and its hash edited": Attack(
        f"WITH made AS (SELECT overlay(leaf PLACING 'evil' FROM 130) AS leaf FROM audit_entries "
        f"WHERE audit_index = {EDITED}) {UPDATED} leaf = made.leaf, leaf_hash = sha256('\\x00'::bytea || made.leaf) "
        f"FROM made WHERE audit_index = {EDITED}",
        FindingKind.LEAF_FORGED,
    ),
    "a genuine leaf in place of another": Attack(
        f"WITH made AS (SELECT leaf, leaf_hash, kind, subject FROM audit_entries WHERE audit_index = {EDITED - 1}) "
        f"{UPDATED} leaf = made.leaf, leaf_hash = made.leaf_hash, kind = made.kind, subject = made.subject FROM made "
        f"WHERE audit_index = {EDITED}",
        FindingKind.LEAF_EDITED,
    ),
    "a leaf blanked": Attack(f"{UPDATED} leaf = '' WHERE audit_index = {EDITED}", FindingKind.LEAF_EDITED),
    "a leaf deleted": Attack(f"DELETE FROM audit_entries WHERE audit_index = {EDITED}", FindingKind.LEAF_MISSING),
    "two leaves swapped": Attack(
        f"{UPDATED} audit_index = -1 WHERE audit_index = {EDITED}; "
        f"{UPDATED} audit_index = {EDITED} WHERE audit_index = {EDITED + 1}; "
        f"{UPDATED} audit_index = {EDITED + 1} WHERE audit_index = -1",
        FindingKind.LEAF_EDITED,
    ),
    "a made-up leaf appended": Attack(
        "SELECT append_audit_entries(ARRAY[100]::smallint[], ARRAY['key/k'], ARRAY['evil']::bytea[])",
        FindingKind.LEAF_FORGED,
        at=None,
    ),
    "a copied leaf appended": Attack(
        "SELECT append_audit_entries(ARRAY[kind], ARRAY[subject], ARRAY[leaf]) FROM audit_entries "
        f"WHERE audit_index = {EDITED}",
        FindingKind.LEAF_FORGED,
        at=None,
    ),
    "a row behind the head": Attack(
        f"INSERT INTO audit_entries SELECT last_index + 5, 100, 'key/k', {GENUINE}, sha256('x') FROM audit_head",
        FindingKind.LEAF_FORGED,
        at=None,
    ),
    "the end cut": Attack("DELETE FROM audit_entries WHERE audit_index > 290", FindingKind.TRUNCATED, at=291),
    "the end cut, and the head": Attack(
        "DELETE FROM audit_entries WHERE audit_index > 290; UPDATE audit_head SET last_index = 290",
        FindingKind.TRUNCATED,
        at=291,
    ),
    "the end cut, with head and checkpoints": Attack(
        "DELETE FROM audit_entries WHERE audit_index > 290; UPDATE audit_head SET last_index = 290; "
        "DELETE FROM audit_checkpoints WHERE size > 290",
        FindingKind.TRUNCATED,
        at=291,
        is_pinned=True,
    ),
    "a tile edited": Attack(
        "UPDATE audit_tiles SET hashes = set_byte(hashes, 5, 255 - get_byte(hashes, 5))",
        FindingKind.TREE_FORKED,
        at=1,
        row="audit_tiles/0/0",
    ),
    "the root of a tile edited": Attack(
        "UPDATE audit_tiles SET root = sha256(root)", FindingKind.TREE_FORKED, at=1, row="audit_tiles/0/0"
    ),
    "a tile deleted": Attack("DELETE FROM audit_tiles", FindingKind.TREE_FORKED, at=1, row="audit_tiles/0/0"),
    "a checkpoint with another root": Attack(
        "UPDATE audit_checkpoints SET note = replace(note, split_part(note, E'\\n', 3), "
        "encode(sha256('x'), 'base64')) WHERE size = (SELECT max(size) FROM audit_checkpoints)",
        FindingKind.TREE_FORKED,
        at=None,
        row="audit_checkpoints",
    ),
    "a subject edited": Attack(
        f"{UPDATED} subject = 'key/other' WHERE audit_index = {EDITED}", FindingKind.COLUMN_DISAGREES
    ),
    "a kind edited": Attack(f"{UPDATED} kind = 102 WHERE audit_index = {EDITED}", FindingKind.COLUMN_DISAGREES),
    "a row rolled back": Attack(
        "DELETE FROM agent_ai_keys WHERE superseded_index IS NULL; UPDATE agent_ai_keys SET superseded_index = NULL "
        "WHERE audit_index = (SELECT max(audit_index) FROM agent_ai_keys)",
        FindingKind.ROW_ROLLED_BACK,
        at=None,
    ),
    "a row deleted": Attack("DELETE FROM agent_bindings", FindingKind.ROW_MISSING, at=None),
    "a row edited": Attack("UPDATE agent_bindings SET owner_id = 'evil'", FindingKind.ROW_FORGED, at=None),
}
TAKEN_OUT: Final = {
    "a leaf blanked": LogCheck.HASHES,
    "a leaf deleted": LogCheck.ORDER,
    "a made-up leaf appended": LogCheck.SEALS,
    "a copied leaf appended": LogCheck.COPIES,
    "a genuine leaf in place of another": LogCheck.TILES,
    "a tile edited": LogCheck.TILES,
    "a checkpoint with another root": LogCheck.CHECKPOINTS,
    "the end cut, and the head": LogCheck.END,
    "a row rolled back": LogCheck.ROWS,
}


async def filled(vault: Vault) -> str:
    """Fill the log beyond a tile, and return a checkpoint over all of it."""
    await vault.bind()
    await vault.working_key()
    router = await vault.router()
    for _ in range(LEASES // 50):
        await router.acquire(*[agent_item() for _ in range(50)])
    head = (await vault.sql("SELECT last_index FROM audit_head"))[0]["last_index"]
    audit = audit_service_pb2_grpc.AuditServiceStub(await vault.channel("operator"))
    response = await audit.GetCheckpoint(audit_service_pb2.GetCheckpointRequest(covering_index=head))
    return str(response.checkpoint)


async def verified(vault: Vault, pinned: str = "") -> audit_service_pb2.VerifyLogResponse:
    """Verify the log, and return all findings in one answer."""
    audit = audit_service_pb2_grpc.AuditServiceStub(await vault.channel("operator"))
    whole = audit_service_pb2.VerifyLogResponse()
    async for step in audit.VerifyLog(audit_service_pb2.VerifyLogRequest(pinned_checkpoint=pinned)):
        whole.MergeFrom(step)
    assert whole.is_done
    return whole


def is_found(attack: Attack, findings: list[audit_service_pb2.LogFinding]) -> bool:
    """Tell whether a finding says what was done, and where."""
    return any(
        int(each.kind) == int(attack.kind)
        and (attack.at is None or each.audit_index == attack.at)
        and (not attack.row or each.row_id == attack.row)
        for each in findings
    )


async def test_a_sound_log_gives_no_finding(vault: Vault) -> None:
    """Also with a pinned checkpoint, and every entry and row was looked at."""
    pinned = await filled(vault)
    whole = await verified(vault, pinned)
    assert list(whole.findings) == []
    head = (await vault.sql("SELECT last_index FROM audit_head"))[0]["last_index"]
    assert (whole.verified_entries, whole.entries) == (head, head)
    assert whole.verified_rows > 0
    assert whole.checkpoint


@pytest.mark.parametrize("name", ATTACKS)
async def test_an_edit_is_found_where_it_was_made(vault: Vault, name: str) -> None:
    """Each attack is named by kind and place."""
    attack = ATTACKS[name]
    pinned = await filled(vault)
    assert list((await verified(vault, pinned)).findings) == []
    await vault.forge(attack.sql)
    findings = list((await verified(vault, pinned if attack.is_pinned else "")).findings)
    assert is_found(attack, findings), findings


@pytest.mark.parametrize("name", TAKEN_OUT)
async def test_without_its_check_an_edit_goes_unseen(vault: Vault, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each check is what finds its attack."""
    await filled(vault)
    await vault.forge(ATTACKS[name].sql)
    monkeypatch.setattr(audit_servicer, "ALL_CHECKS", ALL_CHECKS - {TAKEN_OUT[name]})
    findings = list((await verified(vault)).findings)
    assert not is_found(ATTACKS[name], findings), findings


async def test_a_cut_with_all_its_traces_needs_the_pinned_checkpoint(vault: Vault) -> None:
    """A database alone cannot tell that it was rolled back whole; whoever holds a checkpoint can."""
    pinned = await filled(vault)
    await vault.forge(ATTACKS["the end cut, with head and checkpoints"].sql)
    cut = {Kinds.Name(each.kind) for each in (await verified(vault)).findings}
    assert "LOG_FINDING_KIND_TRUNCATED" not in cut
    assert "LOG_FINDING_KIND_TRUNCATED" in {Kinds.Name(each.kind) for each in (await verified(vault, pinned)).findings}


async def test_a_checkpoint_of_another_log_is_refused(vault: Vault) -> None:
    """What is pinned must be signed by this log."""
    note = (await filled(vault)).replace("byok.keyvault/test", "byok.keyvault/other")
    error = await refusal(verified(vault, note))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_replica_verifies_for_one_at_a_time(vault: Vault) -> None:
    """Each reads the whole log: the second is told to wait, and may ask when the first is done."""
    await filled(vault)
    audit: Any = audit_service_pb2_grpc.AuditServiceStub(await vault.channel("operator"))
    request = audit_service_pb2.VerifyLogRequest()
    calls = [audit.VerifyLog(request) for _ in range(8)]
    codes = await asyncio.gather(*(_code_of(call) for call in calls))
    assert codes.count("OVERLOADED") >= 1
    assert codes.count("") >= 1
    assert not (await verified(vault)).findings


async def _code_of(call: Any) -> str:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error).reason
    return ""

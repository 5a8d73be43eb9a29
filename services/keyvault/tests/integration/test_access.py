"""Who may call what: the whole matrix of roles and RPCs, and that refusals are in the log."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from byok.keyvault.v1 import (
    audit_service_pb2,
    emergency_service_pb2,
    exposure_service_pb2,
    key_service_pb2,
    keyring_service_pb2,
    lease_service_pb2,
)
from keyvault.domain.audit_log import EntryKind, decode_leaf
from servicekit.channels import open_channel
from services.keyvault.tests.integration.vault import name, refusal
from testkit.waiting import eventually

if TYPE_CHECKING:
    from services.keyvault.tests.integration.vault import Vault

pytestmark = pytest.mark.asyncio(loop_scope="session")

SERVICES = (
    key_service_pb2.DESCRIPTOR.services_by_name["KeyService"],
    lease_service_pb2.DESCRIPTOR.services_by_name["LeaseService"],
    emergency_service_pb2.DESCRIPTOR.services_by_name["EmergencyService"],
    exposure_service_pb2.DESCRIPTOR.services_by_name["ExposureService"],
    audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"],
    keyring_service_pb2.DESCRIPTOR.services_by_name["KeyringService"],
)
KEYS = frozenset({"edge", "operator"})
ALLOWED = {
    "CreateKey": KEYS,
    "GetKey": KEYS,
    "ListKeys": KEYS,
    "UpdateKey": KEYS,
    "ReplaceKeySecret": KEYS,
    "RevokeKey": KEYS,
    "GetSubmissionKey": KEYS,
    "BindAgent": frozenset({"metering"}),
    "ShareKey": KEYS,
    "UnshareKey": KEYS,
    "ListShares": KEYS,
    "Halt": KEYS,
    "Resume": KEYS,
    "ListHalts": KEYS,
    "ListCandidates": frozenset({"router"}),
    "EraseOwner": frozenset({"edge", "metering", "operator"}),
    "GetErasure": frozenset({"edge", "metering", "operator"}),
    "FindDuplicates": KEYS,
    "ClaimKeysForValidation": frozenset({"router"}),
    "AcquireLeases": frozenset({"router"}),
    "ReportOutcomes": frozenset({"router"}),
    "ReportValidation": frozenset({"router"}),
    "WatchAuthority": frozenset({"router"}),
    "ListEntries": KEYS,
    "ReadFeed": frozenset({"metering", "operator"}),
    "GetCheckpoint": frozenset({"edge", "metering", "operator"}),
    "GetInclusionProof": frozenset({"edge", "metering", "operator"}),
    "GetConsistencyProof": frozenset({"edge", "metering", "operator"}),
    "ExportEntries": frozenset({"operator"}),
    "VerifyLog": frozenset({"operator"}),
    "ListExposedKeys": frozenset({"operator"}),
    "ListKeyring": frozenset({"operator"}),
    "StageKey": frozenset({"operator"}),
    "PromoteKey": frozenset({"operator"}),
    "RewrapKeys": frozenset({"operator"}),
    "DisableKey": frozenset({"operator"}),
    "EnableKey": frozenset({"operator"}),
    "DestroyKey": frozenset({"operator"}),
    "RegisterBackup": frozenset({"operator"}),
    "RotateRootKey": frozenset({"operator"}),
}
RPCS = [(service.full_name, method.name) for service in SERVICES for method in service.methods]


@pytest.mark.parametrize("role", ["edge", "operator", "metering", "router", "platform", "keyvault", "nobody"])
async def test_each_role_may_call_what_it_is_listed_for(shared_vault: Vault, role: str) -> None:
    """Every RPC of the contract, with an empty request: PERMISSION_DENIED exactly where the role is not listed."""
    channel: Any = await shared_vault.channel(role)
    for service, method in RPCS:
        path = f"/{service}/{method}"
        if method == "WatchAuthority":
            # Nothing is written: a refusal may close the stream first, and a write would then fail by itself.
            stream = channel.stream_stream(path)()
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                await stream.done_writing()
            code = await stream.code()
        else:
            try:
                # An answer that waits for news is none that is refused.
                await channel.unary_unary(path)(b"", timeout=1)
                code = grpc.StatusCode.OK
            except grpc.aio.AioRpcError as failure:
                code = failure.code()
        assert (code != grpc.StatusCode.PERMISSION_DENIED) is (role in ALLOWED[method]), (role, method)


async def test_the_matrix_is_complete() -> None:
    """An RPC that is added to the contract must be added here, too."""
    assert {method for _, method in RPCS} == set(ALLOWED)


async def test_refusals_are_recorded_once_per_caller_and_window(shared_vault: Vault) -> None:
    """A caller that tries again and again fills no log; who it was and what it tried is there."""
    caller = f"spiffe://byok.local/ns/{name('ns')}/sa/metering"
    tls = shared_vault.ca.issue("metering", uri=caller)
    async with open_channel(f"localhost:{shared_vault.port}", tls, server_name="localhost") as channel:
        call = channel.unary_unary("/byok.keyvault.v1.LeaseService/AcquireLeases")
        for _ in range(20):
            error = await refusal(call(b""))
            assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    found = await eventually(lambda: _refusals_of(shared_vault, caller), bool)
    assert found == [{"rpc": "/byok.keyvault.v1.LeaseService/AcquireLeases", "count": "1"}]


async def _refusals_of(vault: Vault, caller: str) -> list[dict[str, str]]:
    rows = await vault.sql("SELECT leaf FROM audit_entries WHERE kind = $1", int(EntryKind.CALLER_REFUSED))
    entries = [decode_leaf(row["leaf"]) for row in rows]
    return [dict(entry.details) for entry in entries if entry.caller == caller]

"""KeyringService over gRPC: stage, prove, promote, disable, destroy; backups; the root key. And the races they end."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import grpc
import pytest

from byok.keyvault.v1 import keyring_service_pb2 as contract
from byok.keyvault.v1 import keyring_service_pb2_grpc
from keyvault.adapters.root_keys.file import read_root_key
from keyvault.domain.audit_log import EntryKind, decode_leaf
from keyvault.settings import KeyringSettings, RootKeySettings
from servicekit.clock import SystemClock
from servicekit.errors import DomainError
from servicekit.wire import error_from_rpc
from services.keyvault.tests.integration.vault import (
    SECRET,
    Vault,
    agent_item,
    create_request,
    new_id,
    owner,
    refusal,
)
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

KEK = contract.KEYRING_PURPOSE_KEK
FAST = KeyringSettings(heartbeat=timedelta(milliseconds=50), replica_bound=timedelta(seconds=1))
MIGRATION = Path(__file__).parents[2] / "migrations" / "0002_keyring.sql"


class Administrator:
    """An operator of one replica's keyring."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub

    async def listed(self, purpose: int = KEK, *, count: bool = False) -> dict[int, Any]:
        """Return the versions of a purpose by number."""
        answer = await self.stub.ListKeyring(contract.ListKeyringRequest(count_rows=count))
        return {each.version: each for each in answer.versions if each.purpose == purpose}

    async def states(self, purpose: int = KEK) -> dict[int, str]:
        """Return the states of a purpose's versions."""
        listed = await self.listed(purpose)
        return {
            number: contract.KeyringState.Name(each.state).removeprefix("KEYRING_STATE_")
            for number, each in listed.items()
        }

    async def stage(self, purpose: int = KEK, request_id: str = "") -> Any:
        """Stage a version."""
        request = contract.StageKeyRequest(request_id=request_id or new_id(), actor="ada", purpose=purpose)  # type: ignore[arg-type]  # a number
        return (await self.stub.StageKey(request)).version

    def call(self, name: str, version: int, purpose: int = KEK, **fields: Any) -> Any:
        """Return a call about one version."""
        request = getattr(contract, f"{name}Request")
        usual = {"request_id": new_id(), "actor": "ada", "purpose": purpose, "version": version}
        return getattr(self.stub, name)(request(**(usual | fields)))

    async def promoted(self, purpose: int = KEK) -> int:
        """Stage a version and promote it as soon as every replica has proved it; return its number."""
        number = int((await self.stage(purpose)).version)
        await self.promote_when_proved(number, purpose)
        return number

    async def promote_when_proved(self, number: int, purpose: int = KEK) -> None:
        """Promote a version as soon as every replica has proved it."""

        async def attempt() -> bool:
            try:
                await self.call("PromoteKey", number, purpose)
            except grpc.aio.AioRpcError as error:
                if error_from_rpc(error).reason != "REPLICA_NOT_READY":
                    raise
                return False
            return True

        await eventually(attempt, bool)


async def administrator(vault: Vault) -> Administrator:
    """Return an operator."""
    return Administrator(keyring_service_pb2_grpc.KeyringServiceStub(await vault.channel("operator")))


async def rewrap_by_replacing(vault: Vault, key_id: str) -> None:
    """Leave nothing under the old KEK, by the plainest means: the secret is replaced."""
    from byok.keyvault.v1 import key_service_pb2  # noqa: PLC0415 (only here)

    await (await vault.keys()).ReplaceKeySecret(
        key_service_pb2.ReplaceKeySecretRequest(
            request_id=new_id(), acting_for=owner(), actor="t", key_id=key_id, plaintext=SECRET
        )
    )


async def entries(vault: Vault, kind: EntryKind) -> list[dict[str, str]]:
    """Return the details of the log's entries of one kind."""
    rows = await vault.sql("SELECT leaf FROM audit_entries WHERE kind = $1 ORDER BY audit_index", int(kind))
    return [dict(decode_leaf(row["leaf"]).details) for row in rows]


async def test_a_version_lives_from_staged_to_destroyed(
    start_vault: Callable[..., Awaitable[Vault]], tmp_path: Path
) -> None:
    """Every step is refused before its time, is in the log, and what was leased before is leased after."""
    other = tmp_path / "next.key"
    other.write_text("a7" * 32)
    other.chmod(0o400)
    vault = await start_vault(keyring=FAST, next_root_key=RootKeySettings(file=other))
    admin = await administrator(vault)
    await vault.bind()
    key = await vault.working_key()
    assert (await refusal(admin.call("DisableKey", 1))).reason == "KEYRING_STATE"
    assert await admin.promoted() == 2
    assert await admin.states() == {1: "DECRYPT_ONLY", 2: "PRIMARY"}
    assert "rewrap" in (await refusal(admin.call("DisableKey", 1))).message
    assert (await admin.listed(count=True))[1].needed_by_rows == 1
    await rewrap_by_replacing(vault, key.key_id)
    await admin.call("DisableKey", 1)
    assert (await refusal(admin.call("DestroyKey", 1))).code == grpc.StatusCode.INVALID_ARGUMENT
    asked = await refusal(admin.call("DestroyKey", 1, old_root_key_is_gone=True))
    assert asked.reason == "CONFIRMATION_REQUIRED"
    word: dict[str, Any] = {"old_root_key_is_gone": True, "confirmation": asked.metadata["confirmation"]}
    assert "rotate the root key first" in (await refusal(admin.call("DestroyKey", 1, **word))).message
    root = read_root_key(other).root_key_id
    await eventually(
        lambda: admin.stub.RotateRootKey(
            contract.RotateRootKeyRequest(request_id=new_id(), actor="ada", root_key_id=root)
        ),
        lambda answer: answer.root_key_id == root,
    )
    now = SystemClock().now()
    backup = contract.Backup(backup_id="nightly")
    backup.snapshot_time.FromDatetime(now - timedelta(hours=1))
    backup.expire_time.FromDatetime(now + timedelta(days=30))
    await admin.stub.RegisterBackup(contract.RegisterBackupRequest(request_id=new_id(), actor="ada", backup=backup))
    assert "backup" in (await refusal(admin.call("DestroyKey", 1, **word))).message
    await admin.call("DestroyKey", 1, **word, give_up_backups=True)
    assert await admin.states() == {1: "DESTROYED", 2: "PRIMARY"}
    wiped = await vault.sql("SELECT wrapped_key, canary FROM keyring_keys WHERE purpose = 1 AND version = 1")
    assert [(row["wrapped_key"], row["canary"]) for row in wiped] == [(b"", b"")]
    changes = [each["change"] for each in await entries(vault, EntryKind.KEYRING_CHANGED)]
    assert changes == ["stage", "promote", "disable", "destroy"]
    assert len(await entries(vault, EntryKind.ROOT_KEY_ROTATED)) == 1
    await vault.working_key(acting_for=owner("owner-2"))


async def test_a_destroyed_version_does_not_hinder_a_start(
    start_vault: Callable[..., Awaitable[Vault]], root_key_file: Path, tmp_path: Path
) -> None:
    """After the rotation of the root key a replica starts with the new one alone; one with the old one does not."""
    other = tmp_path / "next.key"
    other.write_text("a7" * 32)
    other.chmod(0o400)
    vault = await start_vault(keyring=FAST, next_root_key=RootKeySettings(file=other))
    admin = await administrator(vault)
    root = read_root_key(other).root_key_id
    await vault.bind()
    await vault.working_key()
    assert (await admin.stub.ListKeyring(contract.ListKeyringRequest())).next_root_key_id == root

    async def rotated() -> bool:
        try:
            await admin.stub.RotateRootKey(
                contract.RotateRootKeyRequest(request_id=new_id(), actor="ada", root_key_id=root)
            )
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(rotated, bool)
    # The one that runs goes on, and what it makes new is wrapped by the new root key.
    await admin.promoted()
    fresh = await start_vault(keyring=FAST, root_key=RootKeySettings(file=other))
    router = await fresh.router()
    assert router.open(await router.acquire(agent_item()))[0].secret == SECRET
    with pytest.raises(DomainError, match="root key"):
        await start_vault(keyring=FAST, root_key=RootKeySettings(file=root_key_file))


async def test_a_version_is_promoted_only_when_every_live_replica_has_proved_it(
    start_vault: Callable[..., Awaitable[Vault]],
) -> None:
    """A replica that reads the keyring seldom holds the promotion up, is named, and then does not any more."""
    slow = KeyringSettings(heartbeat=timedelta(seconds=30), replica_bound=timedelta(seconds=60))
    here = await start_vault(
        keyring=KeyringSettings(heartbeat=timedelta(milliseconds=50), replica_bound=slow.replica_bound)
    )
    there = await start_vault(keyring=slow)
    admin = await administrator(here)
    await eventually(lambda: here.sql("SELECT 1 FROM keyring_replicas"), lambda rows: len(rows) == 2)
    staged = await admin.stage()
    await eventually(admin.listed, lambda listed: len(listed[2].proved_by) == 1)
    error = await refusal(admin.call("PromoteKey", staged.version))
    assert error.reason == "REPLICA_NOT_READY"
    lagging = await here.sql("SELECT replica_id FROM keyring_replicas WHERE NOT '1/2' = ANY (proved)")
    assert error.metadata["replicas"] == lagging[0]["replica_id"]
    assert await admin.states() == {1: "PRIMARY", 2: "STAGED"}
    # A listing reads the keyring afresh; its next heartbeat would say so, and this test does not wait for it.
    await (await administrator(there)).listed()
    await here.forge("UPDATE keyring_replicas SET proved = array_append(proved, '1/2') WHERE NOT '1/2' = ANY (proved)")
    await admin.promote_when_proved(staged.version)
    assert await admin.states() == {1: "DECRYPT_ONLY", 2: "PRIMARY"}


async def test_a_stopped_replica_does_not_freeze_the_fleet(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """It has no say after its bound; when it goes on, it stores nothing under the old version."""
    here = await start_vault(keyring=FAST)
    gone = await start_vault(keyring=KeyringSettings(heartbeat=timedelta(hours=1), replica_bound=timedelta(hours=2)))
    admin = await administrator(here)
    await eventually(lambda: here.sql("SELECT 1 FROM keyring_replicas"), lambda rows: len(rows) == 2)
    await admin.promoted()
    assert await admin.states() == {1: "DECRYPT_ONLY", 2: "PRIMARY"}
    await (await gone.keys()).CreateKey(create_request())
    rows = await here.sql("SELECT DISTINCT kek_version FROM agent_ai_key_secrets")
    assert [row["kek_version"] for row in rows] == [2]


async def orphan_after_destroy(vault: Vault, admin: Administrator) -> bool:
    """Insert under version 1 in a transaction that is open while it is retired; return whether it was destroyed."""
    staged = await admin.stage()
    inserting = await asyncpg.connect(vault.dsn)
    transaction = inserting.transaction()
    await transaction.start()
    assert await inserting.fetchval("SELECT share_primary_keys(1, 1)")
    await inserting.execute(
        "INSERT INTO agent_ai_key_secrets SELECT $1, 1, '\\x00', '\\x00', 1, 1, sha256('x')", "orphan"
    )

    async def retire() -> bool:
        await admin.promote_when_proved(staged.version)
        try:
            await admin.call("DisableKey", 1)
        except grpc.aio.AioRpcError:
            return False
        return True

    retiring = asyncio.create_task(retire())
    # Either it waits for the lock, or it went through beside the open transaction.
    await eventually(lambda: _is_settled(vault, retiring), bool)
    await transaction.commit()
    await inserting.close()
    return await retiring


async def _is_settled(vault: Vault, task: asyncio.Task[bool]) -> bool:
    return task.done() or bool(await vault.waiting())


async def test_no_orphan_is_left_under_a_version_that_is_retired(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """What was wrapped under the old primary, and is not committed yet, is waited for, and then counted."""
    vault = await start_vault(keyring=FAST)
    admin = await administrator(vault)
    assert not await orphan_after_destroy(vault, admin)
    assert await admin.states() == {1: "DECRYPT_ONLY", 2: "PRIMARY"}


async def test_without_the_rule_an_orphan_is_left(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """The negative control: whoever wraps takes no lock, and the version is retired under an open insert."""
    vault = await start_vault(keyring=FAST)
    admin = await administrator(vault)
    text = await asyncio.to_thread(MIGRATION.read_text)
    function = text[text.index("CREATE FUNCTION share_primary_keys") : text.index("-- Every change of the keyring")]
    assert function.count("    FOR SHARE;") == 1
    await vault.forge(
        function.replace("    FOR SHARE;", "    ;").replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")
    )
    assert await orphan_after_destroy(vault, admin)
    assert await admin.states() == {1: "DISABLED", 2: "PRIMARY"}
    assert await vault.sql("SELECT 1 FROM agent_ai_key_secrets WHERE kek_version = 1")


async def test_a_replica_with_an_old_ring_keeps_serving_through_every_step(
    start_vault: Callable[..., Awaitable[Vault]],
) -> None:
    """Staged, promoted, disabled: whatever it has not heard of yet, its leases are right."""
    here = await start_vault(keyring=FAST)
    old = await start_vault(keyring=KeyringSettings(heartbeat=timedelta(hours=1), replica_bound=timedelta(hours=2)))
    admin = await administrator(here)
    await here.bind()
    key = await here.working_key()
    router = await old.router()

    async def leased() -> bytes:
        secret: bytes = router.open(await router.acquire(agent_item()))[0].secret
        return secret

    assert await leased() == SECRET
    await admin.promoted()
    assert await leased() == SECRET
    await rewrap_by_replacing(here, key.key_id)
    await (await here.router()).validate(key.key_id, key_version=2)
    assert await leased() == SECRET
    await admin.call("DisableKey", 1)
    assert await leased() == SECRET
    await admin.call("EnableKey", 1)
    assert await admin.states() == {1: "DECRYPT_ONLY", 2: "PRIMARY"}


async def test_the_same_request_stages_once(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """And another body under its id is refused."""
    vault = await start_vault(keyring=FAST)
    admin = await administrator(vault)
    request_id = new_id()
    first = await admin.stage(request_id=request_id)
    assert (await admin.stage(request_id=request_id)).version == first.version == 2
    await admin.promote_when_proved(2)
    again = await admin.stage(request_id=request_id)
    assert again.version == 2
    assert len(await admin.listed()) == 2
    error = await refusal(admin.stage(contract.KEYRING_PURPOSE_SUBMISSION, request_id=request_id))
    assert error.reason == "REQUEST_ID_REUSED"


async def test_a_sealed_submission_under_the_old_key_is_taken_until_it_is_disabled(
    start_vault: Callable[..., Awaitable[Vault]],
) -> None:
    """An owner who read the submission key before its rotation need not seal anew."""
    from services.keyvault.tests.integration.test_sealed_submission import binding, sealed  # noqa: PLC0415 - of this test alone

    vault = await start_vault(keyring=FAST)
    admin = await administrator(vault)
    keys = await vault.keys()
    early, late = binding(), binding()
    sealed_early = await sealed(vault, SECRET, early)
    sealed_late = await sealed(vault, SECRET, late)
    await admin.promoted(contract.KEYRING_PURPOSE_SUBMISSION)
    await keys.CreateKey(
        create_request(acting_for=owner(early["owner"]), request_id=early["request_id"], sealed=sealed_early)
    )
    await admin.call("DisableKey", 1, contract.KEYRING_PURPOSE_SUBMISSION)
    error = await refusal(
        keys.CreateKey(
            create_request(acting_for=owner(late["owner"]), request_id=late["request_id"], sealed=sealed_late)
        )
    )
    assert error.reason == "SEALED_SECRET_INVALID"
    fresh = binding()
    await keys.CreateKey(
        create_request(
            acting_for=owner(fresh["owner"]), request_id=fresh["request_id"], sealed=await sealed(vault, SECRET, fresh)
        )
    )


@pytest.mark.parametrize(
    "purpose",
    [
        contract.KEYRING_PURPOSE_AUTHORITY_MAC,
        contract.KEYRING_PURPOSE_EQUALITY_MAC,
        contract.KEYRING_PURPOSE_CHECKPOINT,
    ],
)
async def test_what_verifies_the_past_is_never_retired(
    start_vault: Callable[..., Awaitable[Vault]], purpose: int
) -> None:
    """Rows, leaves and checkpoints name the version that made them."""
    vault = await start_vault(keyring=FAST)
    admin = await administrator(vault)
    await admin.promoted(purpose)
    assert "needed for good" in (await refusal(admin.call("DisableKey", 1, purpose))).message


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("PromoteKey", {"version": 9}, "KEYRING_VERSION_NOT_FOUND"),
        ("PromoteKey", {"version": 0}, "INVALID_ARGUMENT"),
        ("DisableKey", {"version": 1, "purpose": 77}, "INVALID_ARGUMENT"),
        ("DisableKey", {"version": 1, "actor": ""}, "INVALID_ARGUMENT"),
        ("DestroyKey", {"version": 1, "old_root_key_is_gone": True}, "KEYRING_STATE"),
        ("EnableKey", {"version": 1, "request_id": "x"}, "INVALID_ARGUMENT"),
    ],
)
async def test_what_makes_no_sense_is_refused(vault: Vault, name: str, fields: dict[str, Any], reason: str) -> None:
    """With a reason, and nothing changes."""
    admin = await administrator(vault)
    version = fields.pop("version")
    assert (await refusal(admin.call(name, version, **fields))).reason == reason
    assert await admin.states() == {1: "PRIMARY"}


async def test_a_rotation_that_is_undone_in_the_database_is_refused(
    start_vault: Callable[..., Awaitable[Vault]],
) -> None:
    """The old version set PRIMARY again wraps nothing, at replicas that run and at those that start."""
    vault = await start_vault(keyring=FAST)
    admin = await administrator(vault)
    await vault.bind()
    await vault.working_key()
    await admin.promoted()
    await vault.forge("UPDATE keyring_keys SET state = 3 WHERE purpose = 1 AND version = 2")
    await vault.forge("UPDATE keyring_keys SET state = 2 WHERE purpose = 1 AND version = 1")
    error = await refusal((await vault.keys()).CreateKey(create_request(acting_for=owner("owner-2"))))
    assert error.reason == "KEK_UNAVAILABLE"
    router = await vault.router()
    assert router.open(await router.acquire(agent_item()))[0].secret == SECRET
    with pytest.raises(DomainError, match="newest"):
        await start_vault(keyring=FAST)

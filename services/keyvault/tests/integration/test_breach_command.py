"""The breach procedure as an operator types it: halt, rotate, list, follow, report, resume."""

from __future__ import annotations

import asyncio
import csv
import json
from typing import TYPE_CHECKING

import pytest

from byok.keyvault.v1 import key_service_pb2
from keyvault.cli import main as commands
from servicekit.clock import SystemClock
from services.keyvault.tests.integration.vault import SECRET, Vault, agent_item, create_request, name, new_id, owner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path


async def operator(vault: Vault, *words: str) -> int:
    """Type a command as an operator, and return its exit code."""
    tls = vault.ca.issue("operator", uri="spiffe://byok.local/ns/byok/sa/operator")
    flags = [
        f"--keyvault=localhost:{vault.port}",
        "--server-name=localhost",
        f"--certificate-file={tls.certificate}",
        f"--private-key-file={tls.private_key}",
        f"--ca-file={tls.ca}",
        "--actor=ada",
    ]
    return await asyncio.to_thread(commands.run, [*flags, *words])


async def exposed(folder: Path) -> dict[str, str]:
    """Return what the list says of each key."""
    text = await asyncio.to_thread((folder / "exposed.csv").read_text)
    return {row["key_id"]: row["remedy"] for row in csv.DictReader(text.splitlines())}


async def test_a_breach_is_contained_followed_and_accounted_for(
    start_vault: Callable[..., Awaitable[Vault]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is leased meanwhile; the KEK is another one; who has not rotated is named; the report has the facts."""
    vault = await start_vault()
    folder = tmp_path / "case"
    since = SystemClock().now().isoformat()
    owners, keys = [name("owner"), name("owner")], []
    for owner_id in owners:
        await vault.bind(f"agent-of-{owner_id}", owner_id)
        keys.append((await vault.working_key(acting_for=owner(owner_id))).key_id)
    begin = ("breach", "start", "--folder", str(folder), "--since", since, "--reason", "a copy was found")
    assert await operator(vault, *begin) == 0
    router = await vault.router()
    answer = await router.acquire(agent_item(f"agent-of-{owners[0]}"))
    assert answer.results[0].WhichOneof("result") == "error"
    primary = await vault.sql("SELECT version FROM keyring_keys WHERE purpose = 1 AND state = 2")
    assert [row["version"] for row in primary] == [2]
    assert await exposed(folder) == dict.fromkeys(keys, "NONE")

    # Typed again, it goes on from where it was: no second halt, no third KEK.
    case = json.loads(await asyncio.to_thread((folder / "case.json").read_text))
    assert await operator(vault, *begin) == 0
    assert json.loads(await asyncio.to_thread((folder / "case.json").read_text)) == case
    assert len(await vault.sql("SELECT 1 FROM keyring_keys WHERE purpose = 1")) == 2

    assert await operator(vault, "breach", "follow", "--folder", str(folder)) == 1
    assert f"open: owner:{owners[1]}" in capsys.readouterr().out
    await (await vault.keys()).ReplaceKeySecret(
        key_service_pb2.ReplaceKeySecretRequest(
            request_id=new_id(), acting_for=owner(owners[0]), actor="t", key_id=keys[0], plaintext=SECRET + b"new"
        )
    )
    await operator(vault, "breach", "follow", "--folder", str(folder))
    assert await exposed(folder) == {keys[0]: "REPLACED", keys[1]: "NONE"}

    assert await operator(vault, "breach", "report", "--folder", str(folder)) == 0
    report = await asyncio.to_thread((folder / "report.md").read_text)
    assert "a copy was found" in report
    assert "2 keys of 2 accounts" in report
    assert "HALTS_CHANGED" in report
    assert "KEYRING_CHANGED" in report
    assert "byok.keyvault/" in report
    assert SECRET.decode() not in report

    assert await operator(vault, "breach", "resume", "--folder", str(folder)) == 0
    leased = router.open(await router.acquire(agent_item(f"agent-of-{owners[1]}")))
    assert [lease.secret for lease in leased] == [SECRET]


async def test_a_version_that_was_staged_before_the_breach_wraps_nothing_after_it(
    start_vault: Callable[..., Awaitable[Vault]], tmp_path: Path
) -> None:
    """It lay in the memory of every replica, and may have got out with the rest of the keyring."""
    vault = await start_vault()
    assert await operator(vault, "keyring", "stage", "kek") == 0
    since = SystemClock().now().isoformat()
    begin = ("breach", "start", "--folder", str(tmp_path), "--since", since, "--reason", "the keyring got out")
    assert await operator(vault, *begin) == 0
    primary = await vault.sql("SELECT version FROM keyring_keys WHERE purpose = 1 AND state = 2")
    assert [row["version"] for row in primary] == [3]


async def test_a_key_that_is_added_before_the_kek_is_another_one_is_exposed(
    start_vault: Callable[..., Awaitable[Vault]], tmp_path: Path
) -> None:
    """A halt stops leases, not owners: what they add meanwhile is wrapped by what got out."""
    vault = await start_vault()
    since = SystemClock().now().isoformat()
    words = ("breach", "start", "--folder", str(tmp_path), "--since", since, "--reason", "the keyring got out")
    running = asyncio.create_task(operator(vault, *words))
    while not await vault.sql("SELECT 1 FROM keyring_keys WHERE purpose = 1 AND state = 1"):
        await asyncio.sleep(0.01)
    made = await (await vault.keys()).CreateKey(create_request())
    wrapped = await vault.sql("SELECT kek_version FROM agent_ai_key_secrets")
    assert await running == 0
    assert [row["kek_version"] for row in wrapped] == [1]
    assert await exposed(tmp_path) == {made.key.key_id: "NONE"}


async def test_an_edited_row_keeps_no_other_key_from_the_list(
    start_vault: Callable[..., Awaitable[Vault]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list and the report have what can be judged; the command fails, and names the rest."""
    vault = await start_vault()
    since = SystemClock().now().isoformat()
    edited, other = [await vault.working_key(acting_for=owner(name("owner"))) for _ in range(2)]
    await vault.forge("UPDATE agent_ai_keys SET priority = 9 WHERE provider_key_id = $1", edited.key_id)
    words = ("--folder", str(tmp_path))
    assert await operator(vault, "breach", "start", *words, "--since", since, "--reason", "x", "--keep-kek") == 2
    assert edited.key_id in capsys.readouterr().err
    assert await exposed(tmp_path) == {other.key_id: "NONE"}
    assert await operator(vault, "breach", "report", *words) == 2
    report = await asyncio.to_thread((tmp_path / "report.md").read_text)
    assert f"{edited.key_id}" in report


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("start", "--since", "yesterday", "--reason", "x"), "is no time"),
        (("start", "--since", "2026-11-25T08:00:00", "--reason", "x"), "names no time zone"),
        (("start", "--since", "2026-11-25T08:00:00Z", "--reason", "x", "--halt", "planet:earth"), "name a scope"),
        (("follow",), "holds no breach"),
    ],
)
async def test_what_cannot_be_meant_is_said_in_one_line(
    vault: Vault, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], complaint: str
) -> None:
    """And nothing is halted."""
    assert await operator(vault, "breach", *words, "--folder", str(tmp_path / "case")) == 2
    assert complaint in capsys.readouterr().err
    assert not await vault.sql("SELECT 1 FROM audit_entries WHERE kind = 9 AND audit_index > 1")

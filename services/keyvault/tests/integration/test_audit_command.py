"""`keyvault audit`: an auditor verifies the log from a laptop, with a pinned checkpoint and a verifier key."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyvault.cli import main as commands
from keyvault.domain.audit_log import leaf_hash
from services.keyvault.tests.integration.test_verify_log import filled
from services.keyvault.tests.integration.vault import Vault

if TYPE_CHECKING:
    from collections.abc import Callable


SOUND, FOUND, FAILED = 0, 1, 2
Lines = list[dict[str, Any]]


@dataclass
class Auditor:
    """Somebody at a shell, with a folder."""

    vault: Vault
    folder: Path
    capsys: pytest.CaptureFixture[str]

    async def types(self, *words: str) -> tuple[int, str]:
        """Type an operator's command, and return exit code and output."""
        tls = self.vault.ca.issue("operator", uri="spiffe://byok.local/ns/byok/sa/operator")
        flags = [
            f"--keyvault=localhost:{self.vault.port}",
            "--server-name=localhost",
            f"--certificate-file={tls.certificate}",
            f"--private-key-file={tls.private_key}",
            f"--ca-file={tls.ca}",
            "--actor=ada",
        ]
        return await self.types_offline(*flags, *words)

    async def types_offline(self, *words: str) -> tuple[int, str]:
        """Type a command that is told of no KeyVault."""
        self.capsys.readouterr()
        code = await asyncio.to_thread(commands.run, list(words))
        said = self.capsys.readouterr()
        return code, said.out + said.err

    async def pins(self) -> tuple[str, str]:
        """Pin the newest checkpoint; return the flags that name it and the key that signed it."""
        path = self.folder / "pinned.txt"
        code, said = await self.types("audit", "checkpoint", "--save", str(path))
        assert code == SOUND
        key = said.split("'")[1]
        return f"--checkpoint={path}", f"--verifier-key={key}"

    async def exports(self, name: str, *words: str) -> Path:
        """Export the log."""
        path = self.folder / name
        code, said = await self.types("audit", "export", "--out", str(path), *words)
        assert code == SOUND, said
        return path


@pytest.fixture
async def auditor(vault: Vault, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Auditor:
    """Return an auditor of a log of some hundred entries."""
    await filled(vault)
    return Auditor(vault, tmp_path, capsys)


@pytest.mark.parametrize("name", ["log.ndjson", "log.ndjson.gz"])
async def test_an_export_is_verified_without_keyvault(auditor: Auditor, name: str) -> None:
    """It needs the file, the pinned checkpoint and the verifier key, and says what it could not check."""
    pinned, key = await auditor.pins()
    path = await auditor.exports(name)
    code, said = await auditor.types_offline("audit", "verify", str(path), pinned, key)
    assert code == SOUND, said
    assert "Leaf seals were not checked" in said


async def test_exports_in_a_row_are_verified_as_one(auditor: Auditor) -> None:
    """The second file alone is not the log."""
    pinned, key = await auditor.pins()
    files = [
        str(await auditor.exports("first.ndjson", "--last", "100")),
        str(await auditor.exports("second.ndjson", "--first", "101")),
    ]
    code, said = await auditor.types_offline("audit", "verify", *files, pinned, key)
    assert code == SOUND, said
    assert (await auditor.types_offline("audit", "verify", files[1], pinned, key))[0] == FOUND


def _edit(lines: Lines) -> None:
    lines[50] |= {"leaf": "ZXZpbA==", "hash": leaf_hash(b"evil").hex()}


def _blank(lines: Lines) -> None:
    lines[50] |= {"leaf": ""}


def _swap(lines: Lines) -> None:
    one, two = lines[50], lines[51]
    lines[50], lines[51] = (
        one | {"leaf": two["leaf"], "hash": two["hash"]},
        two
        | {
            "leaf": one["leaf"],
            "hash": one["hash"],
        },
    )


def _cut(lines: Lines) -> None:
    del lines[-10:]


def _drop(lines: Lines) -> None:
    del lines[50]


def _hide(lines: Lines) -> None:
    del lines[50]
    for at, line in enumerate(lines[1:], start=1):
        line["index"] = at


@pytest.mark.parametrize("attack", [_edit, _blank, _swap, _cut, _drop, _hide])
async def test_an_edited_export_is_found(auditor: Auditor, attack: Callable[[Lines], None]) -> None:
    """Whatever is done to the file, the signed root does not come out."""
    pinned, key = await auditor.pins()
    path = await auditor.exports("log.ndjson.gz")
    lines: Lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    attack(lines)
    path.write_bytes(gzip.compress("\n".join(json.dumps(line) for line in lines).encode()))
    code, said = await auditor.types_offline("audit", "verify", str(path), pinned, key)
    assert code == FOUND, said


async def test_a_file_is_not_believed_about_its_signer(auditor: Auditor) -> None:
    """Without a pinned key, and with another one, nothing is verified."""
    path = str(await auditor.exports("log.ndjson"))
    assert (await auditor.types_offline("audit", "verify", path))[0] == FAILED
    other = "--verifier-key=byok.keyvault/test+00000000+AAAA"
    assert (await auditor.types_offline("audit", "verify", path, other))[0] == FAILED
    assert (await auditor.types_offline("audit", "verify", path + ".not", other))[0] == FAILED


async def test_the_log_in_the_database_is_verified_over_the_wire(auditor: Auditor) -> None:
    """Sound: 0. Edited: 1, with kind and index."""
    pinned, _ = await auditor.pins()
    assert (await auditor.types("audit", "verify", pinned))[0] == SOUND
    await auditor.vault.forge("UPDATE audit_entries SET leaf = 'evil' WHERE audit_index = 50")
    code, said = await auditor.types("audit", "verify", pinned)
    assert code == FOUND
    assert "50: LEAF_EDITED" in said


async def test_an_entry_is_proved_to_somebody_else(auditor: Auditor) -> None:
    """A bundle verifies offline, and not once it was touched."""
    _, key = await auditor.pins()
    path = auditor.folder / "entry.json"
    assert (await auditor.types("audit", "prove", "7", "--out", str(path)))[0] == SOUND
    code, said = await auditor.types_offline("audit", "check", str(path), key)
    assert code == SOUND, said
    assert "LEASE_GRANTED" in said
    bundle = json.loads(path.read_text())
    for change in ({"index": 8}, {"leaf": "ZXZpbA=="}, {"hash": "00" * 32}, {"proof": bundle["proof"][1:]}):
        path.write_text(json.dumps(bundle | change))
        assert (await auditor.types_offline("audit", "check", str(path), key))[0] == FOUND, change


async def test_what_happened_is_listed(auditor: Auditor) -> None:
    """Of a key, of an agent, and in all."""
    (row,) = await auditor.vault.sql("SELECT provider_key_id FROM agent_ai_keys WHERE superseded_index IS NULL")
    _, of_key = await auditor.types("audit", "list", "--key", row["provider_key_id"])
    _, of_owner = await auditor.types("audit", "list", "--key", row["provider_key_id"], "--owner", "owner-1")
    _, of_agent = await auditor.types("audit", "list", "--agent", "agent-1")
    _, of_all = await auditor.types("audit", "list")
    assert "KEY_CREATED" in of_key
    assert of_owner == of_key
    assert "AGENT_BOUND" in of_agent
    assert of_all.count("\n") == of_key.count("\n") + of_agent.count("\n") + of_all.count("HALTS_CHANGED")

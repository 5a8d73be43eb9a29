"""The rules that guard the contract can fail: buf refuses what would break a caller, and what would hide a refusal."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUF = Path(sys.executable).parent / "buf"


def buf(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run buf in a folder, and return what it said."""
    return subprocess.run(  # noqa: S603 - buf from the lock, on a copy of the contract.
        [str(BUF), *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    """A copy of the contract, with the copy of google/rpc that `make protos` keeps, and its own image beside it."""
    subprocess.run(  # noqa: S603 - the suite's own generator.
        [sys.executable, str(ROOT / "protos" / "generate.py"), "imports"], check=True
    )
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copytree(ROOT / ".cache" / "googleapis", tmp_path / ".cache" / "googleapis")
    assert buf(tmp_path, "build", "protos", "-o", "image.binpb").returncode == 0
    return tmp_path


def replace(path: Path, old: str, new: str) -> None:
    """Change a proto, and fail when there is nothing to change."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


KEYS = Path("protos/byok/keyvault/v1/key_service.proto")
REASONS = Path("protos/byok/keyvault/v1/error_reason.proto")
ACCOUNT = Path("protos/byok/type/v1/account.proto")


@pytest.mark.parametrize(
    ("path", "old", "new", "refusal"),
    [
        (KEYS, "rpc GetKey(GetKeyRequest) returns (GetKeyResponse);", "", 'RPC "GetKey" on service "KeyService"'),
        (KEYS, "service KeyService {", "service KeysService {", 'service "KeyService"'),
        (ACCOUNT, "string owner_id = 1;", "string owner = 1;", "json_name"),
        (ACCOUNT, "string owner_id = 1;", "int64 owner_id = 1;", "type"),
    ],
    ids=["a deleted RPC", "a renamed service", "a renamed field", "a retyped field"],
)
def test_what_breaks_a_caller_is_refused(contract: Path, path: Path, old: str, new: str, refusal: str) -> None:
    """A change that an older caller would notice does not pass."""
    assert buf(contract, "breaking", "protos", "--against", "image.binpb").returncode == 0
    replace(contract / path, old, new)
    outcome = buf(contract, "breaking", "protos", "--against", "image.binpb")
    assert outcome.returncode != 0
    assert refusal in outcome.stdout


@pytest.mark.parametrize(
    ("path", "old", "new", "refusal"),
    [
        (KEYS, "rpc GetKey(GetKeyRequest)", "rpc GetKey(google.rpc.Status)", "RPC_REQUEST_STANDARD_NAME"),
        (REASONS, "package byok.keyvault.v1;", "package byok.vault.v1;", "PACKAGE_DIRECTORY_MATCH"),
        (
            ACCOUNT,
            "message Account {",
            "// buf:lint:ignore COMMENT_MESSAGE\nmessage Nameless {}\n\nmessage Account {",
            "COMMENT_MESSAGE",
        ),
    ],
    ids=["a shared request", "a package beside its folder", "an ignored comment rule"],
)
def test_what_breaks_the_style_is_refused(contract: Path, path: Path, old: str, new: str, refusal: str) -> None:
    """The style holds, and a comment cannot switch it off."""
    clean = buf(contract, "lint", "--error-format=json")
    assert clean.returncode == 0, clean.stdout
    replace(contract / path, old, new)
    if "google.rpc.Status" in new:
        replace(contract / path, "import ", 'import "google/rpc/status.proto";\nimport ')
    outcome = buf(contract, "lint", "--error-format=json")
    assert outcome.returncode != 0
    assert refusal in outcome.stdout

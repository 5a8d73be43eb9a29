"""A wheel of a service holds what the service reads beside its code: migrations, prompts and the allow-list."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = {".py", ".pyc"}


def shipped(service: str) -> set[str]:
    """Return the paths, as they stand in a wheel, of all files of a service that are not code."""
    folder = ROOT / "services" / service
    package = {
        str(path.relative_to(folder / "src"))
        for path in (folder / "src" / service).rglob("*")
        if path.is_file() and path.suffix not in CODE
    }
    return package | {f"{service}/migrations/{path.name}" for path in folder.glob("migrations/*.sql")}


@pytest.mark.parametrize("service", ["keyvault", "router", "metering"])
def test_a_wheel_holds_all_that_its_service_reads(service: str, tmp_path: Path) -> None:
    """What an image installs is the wheel: a file left out of it is missing in production only."""
    subprocess.run(  # noqa: S603 - the build backend from the lock.
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT / "services" / service,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    expected = shipped(service)
    assert f"{service}/access.toml" in expected
    assert expected <= set(zipfile.ZipFile(wheel).namelist())

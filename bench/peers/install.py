"""Install the peers into bench/.peers, which git ignores: LiteLLM from PyPI, Portkey's gateway from npm.

    python -m bench.peers.install

Each is pinned; what is installed already in that version is left alone. Fails when one could not be had.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from bench.errors import BenchError
from bench.peers.pins import (
    LITELLM_PLACE,
    LITELLM_PROGRAM,
    LITELLM_VERSION,
    PORTKEY_PLACE,
    PORTKEY_PROGRAM,
    PORTKEY_VERSION,
)

_INSTALL_SECONDS = 900


def install_litellm() -> None:
    """Make a virtual environment with LiteLLM's proxy.

    Raises:
        BenchError: it could not be installed.
    """
    mark = LITELLM_PLACE / f".installed-{LITELLM_VERSION}"
    if mark.exists() and LITELLM_PROGRAM.exists():
        print(f"peers: LiteLLM {LITELLM_VERSION} is there")
        return
    print(f"peers: installing LiteLLM {LITELLM_VERSION} from PyPI")
    shutil.rmtree(LITELLM_PLACE, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(LITELLM_PLACE)])
    uv = str(Path(sys.executable).with_name("uv"))
    python = str(LITELLM_PLACE / "bin" / "python")
    _run([uv, "pip", "install", "-q", "--python", python, f"litellm[proxy]=={LITELLM_VERSION}"])
    mark.touch()


def install_portkey() -> None:
    """Make a folder with Portkey's gateway.

    Raises:
        BenchError: there is no Node, or it could not be installed.
    """
    manifest = PORTKEY_PROGRAM.parent.parent / "package.json"
    if PORTKEY_PROGRAM.exists() and json.loads(manifest.read_text())["version"] == PORTKEY_VERSION:
        print(f"peers: Portkey's gateway {PORTKEY_VERSION} is there")
        return
    if shutil.which("npm") is None:
        raise BenchError("Portkey's gateway needs Node.js with npm on PATH")
    print(f"peers: installing Portkey's gateway {PORTKEY_VERSION} from npm")
    shutil.rmtree(PORTKEY_PLACE, ignore_errors=True)
    PORTKEY_PLACE.mkdir(parents=True)
    # A lock file would record where packages were downloaded, and scripts are not needed to run it.
    quiet = ["--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    _run(["npm", "install", "--prefix", str(PORTKEY_PLACE), *quiet, f"@portkey-ai/gateway@{PORTKEY_VERSION}"])


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, check=False, timeout=_INSTALL_SECONDS)
    if ended.returncode:
        raise BenchError(f"{' '.join(command[:4])} … ended with {ended.returncode}")


def main() -> int:
    """Install what is missing, and say what failed."""
    failed = 0
    for install in (install_litellm, install_portkey):
        try:
            install()
        except (BenchError, subprocess.TimeoutExpired) as error:
            failed = 1
            print(f"peers: {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    sys.exit(main())

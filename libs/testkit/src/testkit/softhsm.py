"""Tokens of SoftHSM2, a PKCS#11 module in software, in a folder of their own.

The module is the machine's own, the one that BYOK_TEST_SOFTHSM_MODULE names, or the one that `make test` fetched. It is
initialised once per process and reads its configuration then, so a process has one folder of tokens.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pkcs11
from pkcs11 import Attribute, KeyType

from testkit.errors import TestkitError
from testkit.processes import ChildProcess, Command
from testkit.settings import TestkitSettings

_FETCHED = Path(__file__).resolve().parents[4] / ".cache/softhsm/debian"
_PLACES = (
    "usr/lib/softhsm/libsofthsm2.so",
    "usr/lib/*/softhsm/libsofthsm2.so",
    "usr/lib64/pkcs11/libsofthsm2.so",
    "usr/local/lib/softhsm/libsofthsm2.so",
)
_SO_PIN = "canary-so-pin-8241"
# Holds the lock that SoftHSM takes to read a token, until it is ended.
_HOLD = """
import fcntl, pathlib, sys, time
files = [open(path, "r+b") for path in pathlib.Path(sys.argv[1]).rglob("*") if path.is_file()]
for file in files:
    fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


class SoftHsm:
    """The tokens of one folder."""

    def __init__(self, directory: Path, *, pin: str) -> None:
        """Keep tokens in `directory`, each with the user PIN `pin`."""
        self._directory = directory
        self._pin = pin
        self.module, self._util = find_softhsm()
        self.tokens_dir = directory / "tokens"
        self.pin_file = directory / "pin"
        self._conf = directory / "softhsm2.conf"

    def start(self) -> None:
        """Make the folder, and let this process and its children find it."""
        self.tokens_dir.mkdir(parents=True)
        self._conf.write_text(
            f"directories.tokendir = {self.tokens_dir}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        self.pin_file.write_text(self._pin + "\n")
        self.pin_file.chmod(0o400)
        os.environ["SOFTHSM2_CONF"] = str(self._conf)

    def make_token(self, label: str) -> None:
        """Make a token.

        Raises:
            TestkitError: SoftHSM refused.
        """
        words = ["--init-token", "--free", "--label", label, "--so-pin", _SO_PIN, "--pin", self._pin]
        made = subprocess.run(
            [str(self._util), "--module", str(self.module), *words], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            message = f"softhsm2-util ended with {made.returncode}: {made.stderr[-500:]}"
            raise TestkitError(message)

    def make_key(self, token_label: str, label: str, *, bits: int = 256, is_extractable: bool = False) -> None:
        """Make an AES key on a token."""
        with self._loaded().get_token(token_label=token_label).open(rw=True, user_pin=self._pin) as session:
            session.generate_key(
                KeyType.AES,
                bits,
                label=label,
                store=True,
                template={Attribute.SENSITIVE: not is_extractable, Attribute.EXTRACTABLE: is_extractable},
            )

    def hold(self) -> ChildProcess:
        """Keep every call to the module from coming back, until the process that is returned is ended."""
        said = self._directory / "held"
        holder = ChildProcess(
            Command(
                arguments=[sys.executable, "-c", _HOLD, str(self.tokens_dir)],
                log_file=self._directory / "hold.log",
                stdout_file=said,
            )
        )
        holder.start()
        holder.wait_until(lambda: said.read_text() == "held\n", timeout_seconds=10)
        return holder

    def _loaded(self) -> Any:
        module: Any = pkcs11.lib(str(self.module))
        # Another program made the token; the module looks at the folder anew when it is initialised.
        module.reinitialize()
        return module


def find_softhsm() -> tuple[Path, Path]:
    """Return SoftHSM's module and its program.

    Raises:
        TestkitError: there is none; the message says how to get it.
    """
    given = TestkitSettings().softhsm_module
    util = shutil.which("softhsm2-util")
    found = [given] if given is not None else [path for place in _PLACES for path in Path("/").glob(place)]
    if util is not None and found:
        return found[0], Path(util)
    fetched = [path for place in _PLACES for path in _FETCHED.glob(place)]
    if not fetched:
        message = "no SoftHSM2; `make test` fetches it: rm -rf .cache/softhsm && make .cache/softhsm/.ready"
        raise TestkitError(message)
    return fetched[0], _FETCHED / "usr/bin/softhsm2-util"

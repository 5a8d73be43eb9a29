"""Which of the two command lines was meant: the service's own, or an operator's."""

from __future__ import annotations

import pytest

from keyvault.__main__ import COMMANDS, is_operators
from keyvault.cli import main as commands
from keyvault.cli.operators import FAILED


@pytest.mark.parametrize(
    "typed",
    [
        "keyring rewrap",
        "keyring rewrap --pause",
        "--keyvault dns:///keyvault:7000 keyring rewrap",
        "breach start --folder case-1 --since 2026-11-25T06:00:00Z --reason migrate",
        "halt list",
        "audit verify",
    ],
)
def test_an_operators_command_may_contain_a_word_of_the_service(typed: str) -> None:
    """`keyring rewrap` asks for a rewrap over the wire, though `rewrap` alone is the process that does it."""
    assert is_operators(typed.split())


@pytest.mark.parametrize("typed", ["", "--check-config", *COMMANDS, "rewrap --config keyring.toml"])
def test_the_service_keeps_its_own_commands(typed: str) -> None:
    """Also without a word: that serves."""
    assert not is_operators(typed.split())


@pytest.mark.parametrize(
    ("flag", "complaint"), [("--actor=ada", "cannot be read"), (f"--actor={'a' * 129}", "BYOK_OPERATOR_… does not fit")]
)
def test_what_cannot_be_begun_is_no_finding(flag: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A job that verifies the log by its exit code must not take a lost certificate for a log that was edited."""
    files = [f"--{name}-file=/nowhere/{name}.pem" for name in ("certificate", "private-key", "ca")]
    assert commands.run(["--keyvault=localhost:1", *files, flag, "audit", "verify"]) == FAILED
    assert complaint in capsys.readouterr().err

"""`keyvault <group> <command>`: finds the command, and runs it.

Each module of a group has `add_commands(groups)`, which adds its parsers; a command names what it does by
`set_defaults(work=…)`, an async function of the arguments and the `Operator`, or, when it needs no connection, by
`set_defaults(offline=…)`, a plain function of the arguments. Both return an exit code.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import TYPE_CHECKING, Final

from keyvault.cli import audit, breach, halts, keyring
from keyvault.cli.operators import add_connection_flags, perform

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Groups = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 (argparse gives it no public name)

GROUPS: Final[tuple[Callable[[Groups], None], ...]] = (
    audit.add_commands,
    breach.add_commands,
    halts.add_commands,
    keyring.add_commands,
)
NAMES: Final = ("keyring", "audit", "halt", "breach")
"""First words that are an operator's command and not one of the service's own."""


def run(argv: Sequence[str]) -> int:
    """Run the command in `argv` and return its exit code."""
    parser = argparse.ArgumentParser(prog="keyvault", description="Operate KeyVault.")
    add_connection_flags(parser)
    groups = parser.add_subparsers(metavar="group", required=True)
    for add_commands in GROUPS:
        add_commands(groups)
    arguments = parser.parse_args(argv)
    if hasattr(arguments, "offline"):
        return int(arguments.offline(arguments))
    return asyncio.run(perform(arguments, arguments.work))

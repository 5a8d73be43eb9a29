"""`python -m keyvault [serve | migrate] [--config FILE] [--check-config]`, or an operator's command: see `cli`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import structlog

import keyvault.cli.main as operators_commands
from keyvault.app import SERVICE, apply_migrations, serve
from keyvault.settings import Settings
from keyvault.wiring.rewrap import rewrap
from servicekit.errors import DomainError
from servicekit.metrics import Metrics
from servicekit.process import run
from servicekit.settings import load

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence


COMMANDS: Final = ("serve", "migrate", "rewrap")
"""What the service itself does, with its settings; anything else is an operator's command, sent over the wire."""

_log = structlog.get_logger("keyvault.main")


def main(argv: Sequence[str]) -> None:
    """Read the settings and do what was asked for."""
    if is_operators(argv):
        raise SystemExit(operators_commands.run(argv))
    invocation = load(Settings, argv, commands=COMMANDS)
    settings = invocation.settings
    metrics = Metrics(SERVICE)

    async def work(stop: asyncio.Event) -> None:
        try:
            if invocation.command == "migrate":
                await apply_migrations(settings)
            elif invocation.command == "rewrap":
                await rewrap(settings, stop, metrics)
            else:
                await serve(settings, stop, metrics)
        except DomainError as error:
            # What an operator can mend is said in one line, without a traceback.
            _log.error("service.stopped", error=type(error).__name__, reason=error.message, **error.facts)
            raise SystemExit(1) from None

    run(SERVICE, work, telemetry=settings.telemetry, metrics=metrics)


def is_operators(argv: Sequence[str]) -> bool:
    """Return whether an operator's command was typed: the first word that is a command decides."""
    named = (word for word in argv if word in COMMANDS or word in operators_commands.NAMES)
    return next(named, "") in operators_commands.NAMES


def console() -> None:
    """Run what was typed at a shell."""
    main(sys.argv[1:])


if __name__ == "__main__":
    console()

"""`python -m metering [serve | migrate] [--config FILE] [--check-config]`."""

import asyncio
import sys
from collections.abc import Sequence

from metering.adapters.postgres.migrations import migrate
from metering.app import serve
from metering.settings import Settings
from servicekit.metrics import Metrics
from servicekit.process import run
from servicekit.settings import load


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    invocation = load(Settings, argv, commands=("serve", "migrate"))
    settings = invocation.settings
    if invocation.command == "migrate":
        for name in asyncio.run(migrate(settings.postgres.dsn.get_secret_value())):
            sys.stdout.write(f"migrated {name}\n")
        return
    metrics = Metrics("metering")
    run("metering", lambda stop: serve(settings, stop, metrics), telemetry=settings.telemetry, metrics=metrics)


if __name__ == "__main__":
    main(sys.argv[1:])

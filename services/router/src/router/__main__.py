"""`python -m router [serve] [--config FILE] [--check-config]`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from router.app import SERVICE, serve
from router.settings import Settings
from servicekit.metrics import Metrics
from servicekit.process import run
from servicekit.settings import load

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Read the settings and serve."""
    settings = load(Settings, argv).settings
    metrics = Metrics(SERVICE)
    run(SERVICE, lambda stop: serve(settings, stop, metrics), telemetry=settings.telemetry, metrics=metrics)


if __name__ == "__main__":
    main(sys.argv[1:])

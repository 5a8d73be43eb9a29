"""What tests measured or counted: shown at the end of the run, also when it was split over several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

_SHOWN: Final = pytest.StashKey[list[str]]()
_FROM_WORKER: Final = "testkit_figures"


def show(config: pytest.Config, *lines: str) -> None:
    """Have `lines` shown when all tests are through."""
    _shown(config).append("\n".join(lines))


def send_to_controller(config: pytest.Config) -> None:
    """Hand what this process would show to the one that prints; nothing to do in a run of one process."""
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        output[_FROM_WORKER] = _shown(config)


def take_from_worker(config: pytest.Config, output: dict[str, Any]) -> None:
    """Take what a worker had to show."""
    _shown(config).extend(output.get(_FROM_WORKER, []))


def print_all(config: pytest.Config, reporter: TerminalReporter) -> None:
    """Print everything."""
    for each in _shown(config):
        reporter.write_line("")
        reporter.write_line(each)


def _shown(config: pytest.Config) -> list[str]:
    return config.stash.setdefault(_SHOWN, [])

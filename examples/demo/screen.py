"""What the demo shows a person: numbered steps, facts, refusals, and the one last line that a script can read."""

from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.table import Table

NANO_USD_PER_USD: Final = 1_000_000_000

# Also where no terminal tells, as in CI: a table must not be cut to 80 columns.
_COLUMNS: Final = 120


def dollars(nano_usd: int) -> str:
    """Return an amount of nano-USD as dollars, exact to the last digit that is not zero."""
    whole, rest = divmod(nano_usd, NANO_USD_PER_USD)
    digits = f"{rest:09d}".rstrip("0")
    return f"${whole}.{digits:0<2}"


class Screen:
    """Prints the story of the demo, a step at a time."""

    def __init__(self, console: Console | None = None) -> None:
        """Make a screen on `console`, or on standard output."""
        self._console = console or Console(highlight=False, soft_wrap=True, width=_COLUMNS)
        self._step = 0

    def step(self, title: str) -> None:
        """Begin the next step."""
        self._step += 1
        self._console.print(f"\n[bold]{self._step}. {title}[/bold]")

    def say(self, text: str) -> None:
        """Print a fact of the step."""
        self._console.print(f"   {text}", markup=False)

    def refused(self, text: str) -> None:
        """Print a refusal that was expected."""
        self._console.print("   [yellow]refused[/yellow] ", end="")
        self._console.print(text, markup=False)

    def progress(self, text: str) -> None:
        """Print what is being set up."""
        self._console.print(f"   [dim]… {text}[/dim]")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print rows under columns."""
        table = Table(*columns, box=None, padding=(0, 2, 0, 3), header_style="dim")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)

    def last(self, line: str) -> None:
        """Print the last line, plain."""
        self._console.print(f"\n{line}", markup=False, style=None)


class Stopped(Exception):  # noqa: N818 (it reads as what happened)
    """The demo met something that the story does not have."""


class Expected:
    """Tells the story's refusals from those that it does not have."""

    def __init__(self, kind: type[Exception], reason: str) -> None:
        """Expect an exception of `kind` whose `reason` is `reason`."""
        self._kind = kind
        self._reason = reason
        self.error: Exception | None = None

    def __enter__(self) -> Self:
        """Begin to watch."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Keep the expected refusal; raise when there was none."""
        if error is None:
            message = f"expected {self._reason}, and nothing was refused"
            raise Stopped(message)
        if isinstance(error, self._kind) and getattr(error, "reason", "") == self._reason:
            self.error = error
            return True
        return False

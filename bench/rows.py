"""What a bench run says: rows, the bars that they are held against, the table and the JSON.

Knows nothing of how a row is measured. Bars are DESIGN 6's; a row without one is a floor or a figure to read others by.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, Literal

from rich.table import Table
from rich.text import Text
from typing_extensions import override

from bench.errors import BenchError

AT_LEAST: Final = ">="
AT_MOST: Final = "<="


@dataclass(frozen=True)
class Bar:
    """What a value should reach or stay under."""

    direction: Literal[">=", "<="]
    amount: float

    def is_met_by(self, value: float) -> bool:
        """Tell whether the value is on the right side."""
        return value >= self.amount if self.direction == AT_LEAST else value <= self.amount

    @override
    def __str__(self) -> str:
        """Write it as it stands in the results."""
        return f"{self.direction} {self.amount:g}"


BARS: Final[Mapping[str, Bar]] = {
    "router.ops_per_core.c64": Bar(">=", 2300),
    "router.ops_per_core.slow_c512": Bar(">=", 2000),
    "router.ops_per_core.cold_c64": Bar(">=", 1600),
    "router.ratio_portkey.c64": Bar(">=", 2.2),
    "router.ratio_litellm.c64": Bar(">=", 30),
    "router.added_ms_p50.c1": Bar("<=", 1.8),
    "router.added_ms_p99.c1": Bar("<=", 4),
    "suite.cpu_us_per_op.c64": Bar("<=", 600),
    "metering.cpu_us_per_pair.c64": Bar("<=", 100),
    "metering.redis_us_per_pair": Bar("<=", 85),
    "metering.flush_rows_per_s": Bar(">=", 30_000),
    "keyvault.leases_per_core.c64": Bar(">=", 5000),
    "keyvault.lease_ms_p50.c1": Bar("<=", 4),
    "keyvault.rewrap_keys_per_s": Bar(">=", 15_000),
    "keyvault.rewrap_lease_p99_ratio": Bar("<=", 2),
    "growth.lease_1m": Bar("<=", 1.2),
    "memory.keyvault_mb": Bar("<=", 120),
    "memory.router_mb": Bar("<=", 120),
    "memory.metering_mb": Bar("<=", 120),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. `spread` is (largest - smallest) / median of its repetitions; None when there was one only."""

    id: str
    value: float
    unit: str
    spread: float | None
    note: str

    @property
    def bar(self) -> Bar | None:
        """Return what it is held against, if anything."""
        return BARS.get(self.id)

    def to_json(self) -> dict[str, str | float | None]:
        """Return the row as it stands in the results."""
        return {
            "id": self.id,
            "value": round(self.value, 4),
            "unit": self.unit,
            "bar": None if self.bar is None else str(self.bar),
            "spread": None if self.spread is None else round(self.spread, 4),
            "note": self.note,
        }


def row_of(row_id: str, values: Sequence[float], *, unit: str, note: str) -> Row:
    """Make a row of repetitions: their median, and how far apart they are.

    Raises:
        BenchError: there are no repetitions.
    """
    if not values:
        raise BenchError(f"{row_id} was not measured once")
    middle = median(values)
    spread = (max(values) - min(values)) / abs(middle) if len(values) > 1 and middle else None
    return Row(id=row_id, value=middle, unit=unit, spread=spread, note=note)


def table_of(rows: Sequence[Row]) -> Table:
    """Lay the rows out for a terminal, without their notes, which would make it too wide."""
    table = Table(title="BYOK bench", caption="spread: (largest - smallest) / median of the repetitions", box=None)
    table.add_column("id", overflow="fold")
    for name in ("value", "unit", "bar", "spread"):
        table.add_column(name, justify="left" if name == "unit" else "right", no_wrap=True)
    for row in rows:
        colour = "" if row.bar is None else "[green]" if row.bar.is_met_by(row.value) else "[red]"
        table.add_row(
            f"[bold]{row.id}",
            f"{colour}{_figure(row.value)}",
            row.unit,
            "" if row.bar is None else str(row.bar),
            "" if row.spread is None else f"{row.spread:.0%}",
        )
    return table


def notes_of(rows: Sequence[Row]) -> Text:
    """Say how each figure came about."""
    text = Text()
    for row in rows:
        text.append(row.id, style="bold").append(f": {row.note}\n")
    return text


def write_results(path: Path, *, machine: Mapping[str, object], rows: Sequence[Row]) -> None:
    """Write the results, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, "rows": [row.to_json() for row in rows]}, indent=2, ensure_ascii=False)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

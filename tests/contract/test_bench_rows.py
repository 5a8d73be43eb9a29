"""The bench's results keep the form that whoever compares runs reads."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.errors import BenchError
from bench.rows import BARS, Bar, Row, notes_of, row_of, table_of, write_results

_DESIGNED = {
    "router.ops_per_core.c64",
    "router.ops_per_core.slow_c512",
    "router.ops_per_core.cold_c64",
    "router.ratio_portkey.c64",
    "router.ratio_litellm.c64",
    "router.added_ms_p50.c1",
    "router.added_ms_p99.c1",
    "suite.cpu_us_per_op.c64",
    "metering.cpu_us_per_pair.c64",
    "metering.redis_us_per_pair",
    "metering.flush_rows_per_s",
    "keyvault.leases_per_core.c64",
    "keyvault.lease_ms_p50.c1",
    "keyvault.rewrap_keys_per_s",
    "keyvault.rewrap_lease_p99_ratio",
    "growth.lease_1m",
    "memory.keyvault_mb",
    "memory.router_mb",
    "memory.metering_mb",
}


def test_every_designed_row_has_a_bar() -> None:
    """The ids are the ones that results of other runs are compared by."""
    assert set(BARS) == _DESIGNED


@pytest.mark.parametrize(
    ("bar", "value", "is_met"),
    [
        (Bar(">=", 30), 30, True),
        (Bar(">=", 30), 29.9, False),
        (Bar("<=", 1.8), 1.8, True),
        (Bar("<=", 1.8), 1.81, False),
    ],
)
def test_a_bar_is_met_from_its_own_side(bar: Bar, value: float, *, is_met: bool) -> None:
    """Rates should be at least, costs and times at most."""
    assert bar.is_met_by(value) is is_met


def test_results_hold_the_machine_and_six_fields_a_row(tmp_path: Path) -> None:
    """A floor has no bar, and a single measurement no spread: both are null, not absent."""
    path = tmp_path / "results" / "latest.json"
    rows = [
        row_of("router.ops_per_core.c64", [2000.0, 2400.0, 2200.0], unit="op/s", note="three"),
        Row(id="floor.redis_script_us", value=7.5, unit="µs", spread=None, note="once"),
    ]

    write_results(path, machine={"cores": 2}, rows=rows)

    assert json.loads(path.read_text()) == {
        "machine": {"cores": 2},
        "rows": [
            {
                "id": "router.ops_per_core.c64",
                "value": 2200.0,
                "unit": "op/s",
                "bar": ">= 2300",
                "spread": 0.1818,
                "note": "three",
            },
            {
                "id": "floor.redis_script_us",
                "value": 7.5,
                "unit": "µs",
                "bar": None,
                "spread": None,
                "note": "once",
            },
        ],
    }
    assert [each.name for each in path.parent.iterdir()] == ["latest.json"]


def test_a_row_without_a_measurement_is_refused() -> None:
    """An empty list of repetitions must not become a zero."""
    with pytest.raises(BenchError, match="was not measured once"):
        row_of("suite.cpu_us_per_op.c64", [], unit="µs", note="")


def test_the_table_shows_value_bar_and_spread() -> None:
    """What is printed is what is written, also on a narrow terminal, with the notes below."""
    rows = [row_of("router.ratio_litellm.c64", [20.0, 24.0, 22.0], unit="×", note="interleaved")]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table_of(rows))
        console.print(notes_of(rows))
    lines = captured.get().splitlines()
    assert ["router.ratio_litellm.c64", "22", "×", ">=", "30", "18%"] in [line.split() for line in lines]
    assert "router.ratio_litellm.c64: interleaved" in lines

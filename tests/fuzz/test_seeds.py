"""Every seed, through every target: what once broke a parser does not break it again, nor any other."""

from __future__ import annotations

import pytest

from tests.fuzz.make_seeds import seeds
from tests.fuzz.run import FOLDER
from tests.fuzz.targets import TARGETS

SEEDS = sorted(path for path in (FOLDER / "seeds").rglob("*") if path.is_file())


@pytest.mark.parametrize("target", list(TARGETS))
def test_no_seed_breaks_a_target(target: str) -> None:
    """Seeds of all targets: what is nonsense to one parser is an input like any other."""
    for path in SEEDS:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:
            error.add_note(f"seed {path.relative_to(FOLDER)}")
            raise


def test_every_target_has_seeds() -> None:
    """A fuzzer without a real encoding to begin with gets nowhere."""
    assert {path.name for path in (FOLDER / "seeds").iterdir()} == set(TARGETS) == set(seeds())


@pytest.mark.parametrize("target", list(TARGETS))
def test_no_cut_or_flipped_seed_breaks_a_target(target: str) -> None:
    """A little of what the fuzzer does at length: each seed cut anywhere, and each of its bytes flipped."""
    for path in (FOLDER / "seeds" / target).iterdir():
        data = path.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 64)):
            TARGETS[target](data[:at])
            TARGETS[target](data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])

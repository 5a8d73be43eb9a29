"""Fuzzes one target, or all, guided by coverage: `python -m tests.fuzz.run [target …] [--seconds 60]`.

Each target runs in a process of its own, since the fuzzer ends it. What it learns is kept beside the tree, and is where
the next run begins; the seeds in the tree are only read. What breaks a target is left in `.cache/fuzz/<target>/broken`:
mend it, and keep the file as a seed.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
KEPT = FOLDER.parents[1] / ".cache" / "fuzz"
INPUT_BYTES_MAX = 16_384
ONE_INPUT_SECONDS_MAX = 10


def fuzz(target: str, seconds: int) -> None:
    """Fuzz one target in this process; never returns."""
    # There is no wheel but for Linux, and no stubs; the seeds are replayed without it.
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["keyvault", "transparency", "router", "servicekit", "tests.fuzz"]):
        from tests.fuzz.targets import TARGETS  # noqa: PLC0415 (imported under instrumentation, which is the point)

    kept, broken = KEPT / target / "corpus", KEPT / target / "broken"
    for folder in (kept, broken):
        folder.mkdir(parents=True, exist_ok=True)
    arguments = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-timeout={ONE_INPUT_SECONDS_MAX}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-artifact_prefix={broken}/",
        "-print_final_stats=1",
        "-verbosity=1",
        str(kept),
        str(FOLDER / "seeds" / target),
    ]
    atheris.Setup(arguments, TARGETS[target])
    atheris.Fuzz()


def main() -> int:
    """Fuzz what is asked for, one after the other; tell whether anything broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--here", action="store_true", help="fuzz the one target in this process")
    options = parser.parse_args()
    known = sorted(path.name for path in (FOLDER / "seeds").iterdir())
    targets = options.targets or known
    if unknown := set(targets) - set(known):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if options.here:
        fuzz(targets[0], options.seconds)
    failed = []
    for target in targets:
        print(f"\nfuzz: {target}, {options.seconds} s", flush=True)  # noqa: T201 (a program that prints)
        command = [sys.executable, "-m", "tests.fuzz.run", target, "--here", "--seconds", str(options.seconds)]
        if subprocess.run(command, check=False).returncode:  # noqa: S603 (this program, once more)
            failed.append(target)
    if failed:
        print(f"\nfuzz: broken: {', '.join(failed)}; see {KEPT}/<target>/broken", flush=True)  # noqa: T201 (as above)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

"""Load with a fixed number of calls in flight: each worker calls again as soon as it is answered."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from bench.jobs import Load, LoadResult

Call = Callable[[], Awaitable[int]]
"""Makes one call and returns how many operations it carried."""

_ERRORS_MAX = 100


async def closed_loop(call: Call, load: Load) -> LoadResult:
    """Run the load to its end; after too many errors workers stop early, since such a run is void anyway."""
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    operations = 0
    begin = time.perf_counter()
    end = begin + load.seconds

    async def work() -> None:
        nonlocal operations
        while (called := time.perf_counter()) < end and errors.total() < _ERRORS_MAX:
            try:
                # Not `operations += await …`: that would read the sum before the wait, and lose what others added.
                carried = await call()
            except Exception as error:  # noqa: BLE001  # Whatever a call raises is what the report names.
                errors[f"{type(error).__name__}: {_first_line(error)}"] += 1
            else:
                operations += carried
                latencies.append(time.perf_counter() - called)

    await asyncio.gather(*(work() for _ in range(load.in_flight)))
    seconds = time.perf_counter() - begin
    latencies.sort()
    return LoadResult(
        operations=operations,
        calls=len(latencies),
        seconds=seconds,
        p50_ms=_quantile(latencies, 0.50) * 1000,
        p99_ms=_quantile(latencies, 0.99) * 1000,
        errors=dict(errors),
    )


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

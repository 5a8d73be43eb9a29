"""How the root keys that live elsewhere are called: off the event loop where need be, in bounded time, a few times."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import structlog

from keyvault.domain.errors import RootKeyUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from servicekit.clock import Clock

_T = TypeVar("_T")

_log = structlog.get_logger("keyvault.root_key")


class TryAgainError(Exception):
    """An attempt that failed in a way that may pass; never leaves this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptLimits:
    """How long and how often a root key is asked."""

    timeout: timedelta = timedelta(seconds=5)
    """Of one attempt, waiting for others included."""
    attempts_max: int = 3
    pause_min: timedelta = timedelta(milliseconds=200)
    pause_max: timedelta = timedelta(seconds=2)
    """Before the second attempt and before the last; drawn between half of it and all, so that replicas spread."""


class Attempts:
    """Runs what asks one root key, again when that may help."""

    def __init__(self, limits: AttemptLimits, *, clock: Clock) -> None:
        """Give up as `limits` say; wait by `clock`."""
        self._limits = limits
        self._clock = clock
        self._random = secrets.SystemRandom()

    @property
    def timeout(self) -> timedelta:
        """Return how long one attempt may take."""
        return self._limits.timeout

    async def run(self, attempt: Callable[[], Awaitable[_T]], *, root_key_id: str) -> _T:
        """Return what `attempt` returns.

        Raises:
            RootKeyUnavailableError: every attempt raised TryAgainError or took too long.
        """
        failure = ""
        for number in range(1, self._limits.attempts_max + 1):
            if number > 1:
                await self._clock.sleep(self._pause(number))
            try:
                async with asyncio.timeout(self._limits.timeout.total_seconds()):
                    return await attempt()
            except TimeoutError:
                failure = "it did not answer in time; check that it can be reached from here"
            except TryAgainError as error:
                failure = str(error)
            _log.warning("root_key.attempt_failed", root_key_id=root_key_id, attempt=number, reason=failure)
        raise RootKeyUnavailableError(f"the root key is away: {failure}", root_key_id=root_key_id)

    def _pause(self, number: int) -> timedelta:
        longest = min(self._limits.pause_min * (1 << (number - 2)), self._limits.pause_max)
        return longest * self._random.uniform(0.5, 1)


async def run_off_loop(work: Callable[[], _T]) -> _T:
    """Return what `work` returns, run by a thread of its own.

    The thread is a daemon, not one of a pool: a library that never comes back must hold up neither the next call nor
    the end of the process.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def finish(result: _T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # None is a result when it is what `work` returns

    def run() -> None:
        result: _T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 (it is raised where the work was asked for)
            failure = error
        # Whoever asked may be gone, and the loop with it.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=run, name="root-key", daemon=True).start()
    return await done

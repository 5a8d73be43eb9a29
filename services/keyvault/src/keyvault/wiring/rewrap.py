"""The process that rewraps: database and keyring, no server."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import structlog

from keyvault.adapters.postgres.rewrap import PostgresRewrap
from keyvault.usecases.follow_rewrap import FollowRewrap
from keyvault.usecases.rewrap_secrets import RewrapLimits, RewrapSecrets
from keyvault.wiring.base import open_base, report_corruption
from servicekit.ids import new_uuid7

if TYPE_CHECKING:
    from keyvault.domain.rewrap import Rewrap
    from keyvault.settings import Settings
    from keyvault.wiring.base import Base
    from servicekit.metrics import Metrics

_log = structlog.get_logger("keyvault.rewrap")


def follow_rewrap(base: Base) -> FollowRewrap:
    """Return what asks for a pass and tells how it stands."""
    return FollowRewrap(store=PostgresRewrap(base.database, base.sealer), log=base.authority, clock=base.clock)


async def rewrap(settings: Settings, stop: asyncio.Event, metrics: Metrics) -> None:
    """Rewrap until nothing is wanted, or `stop` is set; what was begun is gone on with by the next process.

    Raises:
        DomainError: something is away, or secrets are left that do not open.
    """
    async with contextlib.AsyncExitStack() as stack:
        base = await open_base(settings, metrics, stack)
        work = RewrapSecrets(
            store=PostgresRewrap(base.database, base.sealer),
            keyring=base.keyring,
            corruption=report_corruption(base),
            clock=base.clock,
            worker=new_uuid7(base.clock.now()),
            limits=RewrapLimits(batch=settings.keyring.rewrap_batch, life=settings.keyring.rewrap_claim),
            tell=_Teller(base),
        )
        working = asyncio.create_task(work())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
            return
        stands = working.result()
        _log.info("rewrap.ended", state=stands.state.name, completion_index=stands.completion_index)


class _Teller:
    """Logs how far it is, not more often than every few seconds."""

    def __init__(self, base: Base) -> None:
        self._clock = base.clock
        self._told = float("-inf")

    def __call__(self, stands: Rewrap) -> None:
        now = self._clock.monotonic()
        if now - self._told >= _TOLD_EVERY:
            self._told = now
            _log.info(
                "rewrap.progress",
                state=stands.state.name,
                kek_version=stands.kek_version,
                done=stands.done,
                remaining=stands.remaining,
                failed=stands.failed,
                keys_per_second=round(stands.keys_per_second),
            )


_TOLD_EVERY = 2.0

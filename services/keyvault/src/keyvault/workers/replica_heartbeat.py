"""Says that this replica is alive and which versions and root keys it can use, and keeps its keyring fresh."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from servicekit.errors import DomainError

if TYPE_CHECKING:
    from datetime import timedelta

    from keyvault.ports import KeyringAdministration, KeyringCustody
    from servicekit.clock import Clock

FORGET_AFTER: Final = 60
"""A replica is forgotten after this many times the bound within which it counts as live."""

_log = structlog.get_logger("keyvault.replica")


class ReplicaHeartbeat:
    """One report after another, at an interval well below the bound within which a replica counts as live."""

    def __init__(  # noqa: PLR0913 (what a report says)
        self,
        *,
        store: KeyringAdministration,
        custody: KeyringCustody,
        clock: Clock,
        replica_id: str,
        release: str,
        interval: timedelta,
        live: timedelta,
    ) -> None:
        """Report to `store` as `replica_id`."""
        self._store = store
        self._custody = custody
        self._clock = clock
        self._replica_id = replica_id
        self._release = release
        self._interval = interval
        self._live = live
        self._root_key_ids: list[str] = []
        self._looking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Report until cancelled. A report that fails is logged: others then count this replica as gone."""
        try:
            while True:
                try:
                    await self.beat()
                except DomainError as error:
                    _log.warning("replica.not_reported", error=type(error).__name__)
                await self._clock.sleep(self._interval)
        finally:
            if self._looking is not None:
                self._looking.cancel()

    async def beat(self) -> None:
        """Say what of the keyring this replica can use, as far as it has looked by now.

        It is said also while the root key is away or slow: a replica that serves and cannot use the next version must
        keep its say, or that version is promoted without it.

        Raises:
            DomainError: the store or a root key is away; what was proved before stands.
        """
        failure = await self._looked()
        await self._store.report(
            self._replica_id,
            release=self._release,
            root_key_ids=self._root_key_ids,
            proved=self._custody.current().proved(),
        )
        await self._store.forget_replicas(self._live * FORGET_AFTER)
        if failure is not None:
            raise failure

    async def _looked(self) -> BaseException | None:
        """Read the keyring if it changed, waiting no longer than until the next report; return how that failed."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        await asyncio.wait({self._looking}, timeout=self._interval.total_seconds())
        if not self._looking.done():
            return None
        looked, self._looking = self._looking, None
        return looked.exception()

    async def _look(self) -> None:
        try:
            await self._custody.refresh()
        finally:
            self._root_key_ids = await self._custody.prove_roots()

"""Says that this replica is alive and which versions and root keys it can use, and keeps its keyring fresh."""

from __future__ import annotations

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

    async def run(self) -> None:
        """Report until cancelled. A report that fails is logged: others then count this replica as gone."""
        while True:
            try:
                await self.beat()
            except DomainError as error:
                _log.warning("replica.not_reported", error=type(error).__name__)
            await self._clock.sleep(self._interval)

    async def beat(self) -> None:
        """Read the keyring if it changed, then say what of it this replica can use.

        Raises:
            DomainError: the store or a root key is away; what was proved before stands until the bound has passed.
        """
        ring = await self._custody.refresh()
        await self._store.report(
            self._replica_id,
            release=self._release,
            root_key_ids=await self._custody.prove_roots(),
            proved=ring.proved(),
        )
        await self._store.forget_replicas(self._live * FORGET_AFTER)

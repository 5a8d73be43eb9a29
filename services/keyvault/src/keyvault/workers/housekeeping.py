"""Probes the keyring's canaries, and forgets request ids that are too old to be repeated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from keyvault.domain.keyring import KeyPurpose
from servicekit.errors import DomainError

if TYPE_CHECKING:
    from datetime import timedelta

    from keyvault.ports import KeyringSource, ProviderKeyStore
    from servicekit.clock import Clock

_log = structlog.get_logger("keyvault.housekeeping")


class Housekeeping:
    """One pass after another, at an interval. A pass that fails is logged, and the next one tries again."""

    def __init__(
        self,
        *,
        keyring: KeyringSource,
        store: ProviderKeyStore,
        clock: Clock,
        interval: timedelta,
        requests_kept: timedelta,
    ) -> None:
        """Probe `keyring` and clean up in `store`."""
        self._keyring = keyring
        self._store = store
        self._clock = clock
        self._interval = interval
        self._requests_kept = requests_kept
        self.failing_canaries = 0
        self.is_primary_kek_usable = True

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._clock.sleep(self._interval)
            self.probe()
            try:
                await self._store.forget_requests(self._requests_kept)
            except DomainError as error:
                _log.warning("housekeeping.requests_kept", error=type(error).__name__)

    def probe(self) -> None:
        """Open every canary; the primary KEK failing makes the process not ready, another version an alarm."""
        ring = self._keyring.current()
        opened = ring.probe_canaries()
        failing = [name for name, is_open in opened.items() if not is_open]
        self.failing_canaries = len(failing)
        primary = (KeyPurpose.KEK, ring.primary(KeyPurpose.KEK).version)
        self.is_primary_kek_usable = primary not in failing
        for purpose, version in failing:
            _log.error("keyring.canary_failed", purpose=purpose.name, version=version)

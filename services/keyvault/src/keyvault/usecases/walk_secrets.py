"""Looks whether every wrapped DEK unwraps, a few at a time. No secret is opened."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyvault.domain.envelope import unwrap_dek, wrapped_kek_version
from keyvault.domain.errors import AuthorityForgedError, EnvelopeCorruptError, KekVersionUnavailableError

if TYPE_CHECKING:
    from keyvault.domain.keyring import Keyring
    from keyvault.ports import KeyringSource, SecretRow, SecretStore
    from keyvault.usecases.report_corruption import ReportCorruption
    from keyvault.usecases.verify_rows import VerifyRows


@dataclass(slots=True)
class Decryptability:
    """What one pass over all secrets found."""

    by_kek_version: Counter[int] = field(default_factory=Counter)
    unavailable: int = 0
    corrupt: int = 0

    @property
    def undecryptable(self) -> int:
        """Return how many secrets cannot be opened now."""
        return self.unavailable + self.corrupt


class WalkSecrets:
    """Walks one batch at a time, and keeps what the last whole pass found."""

    def __init__(
        self,
        *,
        secrets: SecretStore,
        verify: VerifyRows,
        keyring: KeyringSource,
        corruption: ReportCorruption,
        batch_max: int,
    ) -> None:
        """Walk `secrets`."""
        self._secrets = secrets
        self._verify = verify
        self._keyring = keyring
        self._corruption = corruption
        self._batch_max = batch_max
        self._after = ("", 0)
        self._walking = Decryptability()
        self.found = Decryptability()
        self.passes = 0

    async def __call__(self) -> bool:
        """Walk a batch; return whether the pass goes on.

        Raises:
            UnavailableError: the store is away.
        """
        rows = await self._secrets.walk(self._after, self._batch_max)
        ring = await self._ring_for(rows)
        for row in rows:
            await self._look(ring, row)
        if len(rows) == self._batch_max:
            self._after = (rows[-1].provider_key_id, rows[-1].key_version)
            return True
        self.found, self._walking, self._after = self._walking, Decryptability(), ("", 0)
        self.passes += 1
        return False

    async def _ring_for(self, rows: list[SecretRow]) -> Keyring:
        """Return the present ring, read again at most once a batch when it lacks a version."""
        ring = self._keyring.current()
        try:
            for version in {row.kek_version for row in rows}:
                ring.kek(version)
        except KekVersionUnavailableError:
            return await self._keyring.reload()
        return ring

    async def _look(self, ring: Keyring, row: SecretRow) -> None:
        self._walking.by_kek_version[row.kek_version] += 1
        try:
            await self._unwrap(ring, row)
        except KekVersionUnavailableError:
            self._walking.unavailable += 1
        except (AuthorityForgedError, EnvelopeCorruptError) as error:
            self._walking.corrupt += 1
            await self._corruption(row.provider_key_id, error)

    async def _unwrap(self, ring: Keyring, row: SecretRow) -> None:
        if row.key is None:
            raise EnvelopeCorruptError(
                "a stored secret belongs to no present version of a key", provider_key_id=row.provider_key_id
            )
        stored = await self._verify.key(row.key)
        if wrapped_kek_version(row.wrapped_dek) != row.kek_version:
            raise EnvelopeCorruptError(
                "a wrapped key and its column name two KEK versions", provider_key_id=row.provider_key_id
            )
        context = stored.key.envelope_context(ring.deployment).canonical()
        unwrap_dek(row.wrapped_dek, associated_data=context, kek=ring.kek(row.kek_version)).wipe()

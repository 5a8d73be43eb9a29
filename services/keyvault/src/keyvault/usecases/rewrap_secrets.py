"""Wraps every DEK under the PRIMARY KEK, in a process of its own: in a serving one, leases would wait for it.

It walks by primary key, stores how far it has come with each batch, and so goes on where it was after any death. No
secret is opened: a DEK is unwrapped, wrapped, unwrapped again to see that it is the same, and wiped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.envelope import unwrap_dek, wrap_dek
from keyvault.domain.errors import EnvelopeCorruptError, KekVersionUnavailableError
from keyvault.domain.rewrap import Pace, Rewrap
from keyvault.ports.rewrap import RewrapBatch, RewrappedKey, WrappedKey
from servicekit.errors import DomainError

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyvault.domain.envelope import Kek
    from keyvault.domain.keyring import Keyring
    from keyvault.ports import KeyringSource
    from keyvault.ports.rewrap import RewrapStore
    from keyvault.usecases.report_corruption import ReportCorruption
    from servicekit.clock import Clock

_PAUSE: Final = timedelta(seconds=1)
_PACE_OVER: Final = 20
"""A pace is counted over this many batches, then anew, so that a pause is not made up for by a rush."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewrapLimits:
    """How the work is cut. A worker that says nothing for `life` is taken for dead."""

    batch: int
    life: timedelta


@dataclass(frozen=True, slots=True)
class _Wrapped:
    rewrapped: Sequence[RewrappedKey]
    failed: Sequence[WrappedKey]


class _InTurn:
    """Lets one batch be stored while the next is made; an earlier one that was refused refuses all that follow."""

    def __init__(self) -> None:
        self._storing: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.gather(self._storing, return_exceptions=True)

    async def begin(self, work: Coroutine[None, None, bool]) -> bool:
        """Begin `work` when what was begun before has ended well; return whether it has."""
        if not await self.ended():
            work.close()
            return False
        self._storing = asyncio.create_task(work)
        return True

    async def ended(self) -> bool:
        """Wait for what was begun, and return whether it ended well."""
        return self._storing is None or await self._storing


class RewrapSecrets:
    """One worker."""

    def __init__(  # noqa: PLR0913 (its ports; keyword-only)
        self,
        *,
        store: RewrapStore,
        keyring: KeyringSource,
        corruption: ReportCorruption,
        clock: Clock,
        worker: str,
        limits: RewrapLimits,
        tell: Callable[[Rewrap], None],
    ) -> None:
        """Work as `worker`; `tell` hears how far it has come after every batch."""
        self._store = store
        self._keyring = keyring
        self._corruption = corruption
        self._clock = clock
        self._worker = worker
        self._limits = limits
        self._tell = tell

    async def __call__(self) -> Rewrap:
        """Work until nothing is wanted any more; return how the pass stands then.

        While another process is at it, this one waits: if that one dies, it goes on.

        Raises:
            EnvelopeCorruptError: DEKs are left that do not open; each is in the audit log.
            DomainError: the store or the root key is away.
        """
        while True:
            claimed = await self._store.claim(self._worker, self._limits.life)
            if claimed is None:
                stands = await self._store.read()
                if not stands.is_wanted:
                    return stands
                self._tell(stands)
                await self._clock.sleep(_PAUSE)
            elif claimed.is_paused:
                self._tell(claimed)
                await self._clock.sleep(_PAUSE)
            else:
                await self._work(claimed)

    async def _work(self, claimed: Rewrap) -> None:
        """Work until the claim must be looked at again, for a pause or another pace, or until the end of the walk."""
        if self._keyring.current().primary_kek().version != claimed.kek_version:
            await self._keyring.reload()
        after, pace, is_at_end = claimed.after, Pace(self._clock.monotonic()), False
        async with _InTurn() as storing:
            for _ in range(_PACE_OVER):
                rows = await self._store.walk(
                    after, deployment=self._keyring.current().deployment, limit=self._limits.batch
                )
                is_at_end = not rows
                if is_at_end:
                    break
                after = (rows[-1].provider_key_id, rows[-1].key_version)
                wrapped = await self._wrap(claimed.kek_version, rows)
                rest = pace.rest(
                    len(wrapped.rewrapped),
                    keys_per_second_max=claimed.keys_per_second_max,
                    now=self._clock.monotonic(),
                )
                batch = RewrapBatch(
                    kek_version=claimed.kek_version,
                    rewrapped=wrapped.rewrapped,
                    failed=len(wrapped.failed),
                    after=after,
                    keys_per_second=pace.rate(self._clock.monotonic() + rest),
                )
                # The next batch is read and wrapped while this one is stored; they are stored one after the other.
                if not await storing.begin(self._keep(batch, wrapped.failed)):
                    return
                if rest:
                    await self._clock.sleep(timedelta(seconds=rest))
            if not await storing.ended():
                return
        if is_at_end:
            await self._complete(claimed)
        else:
            self._tell(await self._store.read())

    async def _keep(self, batch: RewrapBatch, failed: Sequence[WrappedKey]) -> bool:
        if await self._store.write(self._worker, self._limits.life, batch) != "WRITTEN":
            return False
        for row in failed:
            await self._report(row)
        return True

    async def _wrap(self, kek_version: int, rows: Sequence[WrappedKey]) -> _Wrapped:
        waiting = [row for row in rows if row.kek_version != kek_version]
        ring = await self._ring_for({row.kek_version for row in waiting})
        # In a thread, so that the connection and the claim are served meanwhile; the cryptography lets go of the GIL.
        return await asyncio.to_thread(_wrapped, ring, ring.kek(kek_version), waiting)

    async def _ring_for(self, versions: set[int]) -> Keyring:
        ring = self._keyring.current()
        try:
            for version in versions:
                ring.kek(version)
        except KekVersionUnavailableError:
            return await self._keyring.reload()
        return ring

    async def _complete(self, claimed: Rewrap) -> None:
        before = await self._store.read()
        details = (
            ("kek_version", str(claimed.kek_version)),
            ("rewrapped", str(before.done)),
            ("left_under_other_versions", "0"),
        )
        entry = AuditEntry(kind=EntryKind.REWRAP_COMPLETED, time=self._clock.now(), caller="keyvault", details=details)
        index = await self._store.complete(self._worker, claimed.kek_version, entry)
        stands = await self._store.read()
        self._tell(stands)
        if index == 0 and before.failed:
            message = "some secrets do not open under the version that they name; see the audit log, mend, run it again"
            raise EnvelopeCorruptError(message, failed=before.failed)

    async def _report(self, row: WrappedKey) -> None:
        message = "a wrapped key does not open under the version and the key that it is stored for"
        error = EnvelopeCorruptError(message, provider_key_id=row.provider_key_id, key_version=row.key_version)
        await self._corruption(row.provider_key_id, error)


def _wrapped(ring: Keyring, kek: Kek, rows: Sequence[WrappedKey]) -> _Wrapped:
    rewrapped, failed = [], []
    for row in rows:
        try:
            rewrapped.append(RewrappedKey(row, _wrapped_anew(ring, kek, row)))
        except DomainError:
            failed.append(row)
    return _Wrapped(rewrapped, failed)


def _wrapped_anew(ring: Keyring, kek: Kek, row: WrappedKey) -> bytes:
    if row.context is None:
        raise EnvelopeCorruptError("a stored secret belongs to no present version of a key")
    associated_data = row.context.canonical()
    dek = unwrap_dek(row.wrapped_dek, associated_data=associated_data, kek=ring.kek(row.kek_version))
    wrapped = wrap_dek(dek, associated_data=associated_data, kek=kek)
    again = unwrap_dek(wrapped, associated_data=associated_data, kek=kek)
    is_same = again.reveal() == dek.reveal()
    dek.wipe()
    again.wipe()
    if not is_same:
        raise EnvelopeCorruptError("what was wrapped does not open as what it was")
    return wrapped

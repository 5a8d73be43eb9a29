"""ListExposedKeys: after a breach, which keys could have been read, and what their owners have done since.

With a caller, the log says which keys it leased. Without one, every key whose secret was stored is meant: whoever
copied the database, and has the keyring, has them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.errors import AuthorityForgedError
from keyvault.domain.exposure import CallersLeases, Interval, Remedy, remedy, was_stored
from keyvault.domain.new_keys import refused
from keyvault.domain.provider_keys import StoredKey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from datetime import datetime

    from keyvault.ports import KeyRow, ProviderKeyStore
    from keyvault.ports.exposure import ExposureLog
    from keyvault.usecases.verify_rows import VerifyRows
    from servicekit.clock import Clock

KEYS_PER_PAGE: Final = 500
ENTRIES_PER_PAGE: Final = 5_000
UNJUDGED_TOLD_MAX: Final = 20
CLOCK_MARGIN: Final = timedelta(minutes=5)
"""Entries carry the clock of the replica that wrote them: the search begins a little early and ends a little late."""


@dataclass(frozen=True, slots=True)
class Exposed:
    """One exposed key."""

    stored: StoredKey
    remedy: Remedy
    leases: CallersLeases | None


@dataclass(frozen=True, slots=True)
class ExposurePage:
    """Some of the exposed keys, and how many entries of the log were looked at so far."""

    keys: Sequence[Exposed]
    scanned_entries: int


class ListExposedKeys:
    """Searches log and keys, in pages, so that leases go on beside it."""

    def __init__(self, *, log: ExposureLog, store: ProviderKeyStore, verify: VerifyRows, clock: Clock) -> None:
        """Search `log` and `store`."""
        self._log = log
        self._store = store
        self._verify = verify
        self._clock = clock

    async def __call__(self, interval: Interval, *, caller: str) -> AsyncIterator[ExposurePage]:
        """Yield pages of exposed keys, in the order of their ids.

        Raises:
            InvalidArgumentError: the interval does not fit, or begins before what the log keeps.
            AuthorityForgedError: a lease's entry was not written by this service as it stands; or, once all others are
                yielded, the row of a key was not, or is gone: whoever wrote to the database must not stop the list.
            UnavailableError: the store is away.
        """
        self._check(interval)
        unjudged: list[str] = []
        if not caller:
            after = ""
            while key_ids := await self._log.key_ids(after, limit=KEYS_PER_PAGE):
                yield ExposurePage(await self._exposed(key_ids, interval, None, unjudged), 0)
                after = key_ids[-1]
            _ensure_all_judged(unjudged)
            return
        by_key: dict[str, CallersLeases] = {}
        scanned = 0
        async for scanned in self._scan(interval, caller, by_key):
            yield ExposurePage((), scanned)
        for start in range(0, len(by_key), KEYS_PER_PAGE):
            key_ids = sorted(by_key)[start : start + KEYS_PER_PAGE]
            yield ExposurePage(await self._exposed(key_ids, interval, by_key, unjudged), scanned)
        _ensure_all_judged(unjudged)

    def _check(self, interval: Interval) -> None:
        if interval.end > self._clock.now():
            raise refused("end_time", "IN_THE_FUTURE", "Send the time at which the breach was contained.")
        if interval.start >= interval.end:
            raise refused("start_time", "NOT_BEFORE_END", "Send a time before end_time.")

    async def _scan(self, interval: Interval, caller: str, by_key: dict[str, CallersLeases]) -> AsyncIterator[int]:
        """Fill `by_key` with what the caller leased, yielding how many entries were looked at."""
        kept, head = await self._log.bounds()
        searched = Interval(interval.start - CLOCK_MARGIN, interval.end + CLOCK_MARGIN)
        begin = await self._index_at(searched.start, kept, head)
        if begin == kept > 1:
            remedy_text = "The log keeps no entries of that time; search the archive of older segments first."
            raise refused("start_time", "ARCHIVED", remedy_text)
        position = begin - 1
        last = await self._index_at(searched.end, kept, head)
        while position < last:
            page = await self._log.read_leases(position, up_to=last, limit=ENTRIES_PER_PAGE)
            for lease in page.leases:
                entry = lease.entry
                if entry.caller == caller and searched.start <= entry.time <= searched.end:
                    _count(by_key, entry.provider_key_id, entry.time)
            position = max(page.scanned_to, position + 1)
            yield position - begin + 1

    async def _index_at(self, time: datetime, first: int, last: int) -> int:
        """Return the first index whose entry is not before `time`; the last one when all are before it."""
        low, high = first, max(first, last)
        while low < high:
            middle = (low + high) // 2
            if await self._log.time_at(middle) < time:
                low = middle + 1
            else:
                high = middle
        return low

    async def _exposed(
        self,
        key_ids: Sequence[str],
        interval: Interval,
        by_key: Mapping[str, CallersLeases] | None,
        unjudged: list[str],
    ) -> list[Exposed]:
        """Return what is exposed of these keys, and add to `unjudged` those whose row is gone or not to be believed."""
        times = await self._log.secret_times(key_ids)
        rows = {row.found_by.provider_key_id: row for row in await self._store.get_many(key_ids)}
        exposed = []
        for key_id in key_ids:
            stored = await self._believed(rows.get(key_id))
            if stored is None:
                unjudged.append(key_id)
                continue
            if by_key is not None or was_stored(stored.key, interval):
                found = remedy(stored.key, times.get(key_id), interval)
                exposed.append(Exposed(stored, found, None if by_key is None else by_key[key_id]))
        return exposed

    async def _believed(self, row: KeyRow | None) -> StoredKey | None:
        with contextlib.suppress(AuthorityForgedError):
            return None if row is None else await self._verify.key(row)
        return None


def _ensure_all_judged(unjudged: Sequence[str]) -> None:
    if unjudged:
        told = ", ".join(unjudged[:UNJUDGED_TOLD_MAX]) + (", …" if len(unjudged) > UNJUDGED_TOLD_MAX else "")
        message = f"of {len(unjudged)} keys the row is gone or was edited; take them for exposed, and verify the log"
        raise AuthorityForgedError(f"{message}: {told}", row_id=unjudged[0])


def _count(by_key: dict[str, CallersLeases], key_id: str, time: datetime) -> None:
    known = by_key.get(key_id)
    if known is None:
        by_key[key_id] = CallersLeases(1, time, time)
    else:
        by_key[key_id] = CallersLeases(known.count + 1, min(known.first, time), max(known.last, time))

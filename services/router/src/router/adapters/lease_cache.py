"""Keeps leases and "no key" answers for as long as authority allows, and shares what is being fetched."""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import structlog
from typing_extensions import override

from router.domain.leases import Lease
from router.domain.refusals import LeaseEndedError, SuiteUnavailableError
from router.ports import KeyAuthority

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.adapters.authority import Authority
    from router.adapters.keyvault_client import KeyVaultClient
    from router.domain.leases import LeaseQuery, NoKey, Outcome
    from router.ports import ValidationReport
    from servicekit.clock import Clock


_log = structlog.get_logger("router.leases")

_MILLISECOND: Final = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """Bounds of the cache.

    Attributes:
        entries_max: Answers kept.
        contact_wait: How long a call may wait for the watch on authority to be in contact.
        sweep_interval: How often what has ended is let go of.
        late_leases_max: How often a lease may arrive that a newer change has ended already.
    """

    entries_max: int
    contact_wait: timedelta
    sweep_interval: timedelta
    late_leases_max: int


class LeaseCache(KeyAuthority):
    """Custody as the use cases see it."""

    def __init__(
        self,
        client: KeyVaultClient,
        authority: Authority,
        *,
        limits: CacheLimits,
        clock: Clock,
        count: Callable[[str], None] = lambda _result: None,
    ) -> None:
        """Cache what `client` answers while `authority` allows; `count` is told of hits and misses."""
        self._client = client
        self._authority = authority
        self._limits = limits
        self._clock = clock
        self._count = count
        self._kept: dict[LeaseQuery, Lease | NoKey] = {}
        self._fetching: dict[LeaseQuery, asyncio.Task[Lease | NoKey]] = {}
        self._claimed: set[str] = set()
        self._swept_index = -1

    @property
    def entries(self) -> int:
        """Return how many answers are kept."""
        return len(self._kept)

    async def keep_clean(self) -> None:
        """Let go of what has ended, until cancelled: no plaintext is kept for longer than it may be used."""
        while True:
            await self._clock.sleep(self._limits.sweep_interval)
            self.drop_ended()

    def drop_ended(self) -> None:
        """Let go of what has ended; all of it is looked at only when authority has changed since the last time."""
        ended = []
        for query, answer in self._kept.items():
            try:
                self._authority.ensure(answer)
            except LeaseEndedError as error:
                # Out of contact nothing may be used, but it may be again: only what is over for good goes.
                if error.rule != "contact":
                    ended.append(query)
            else:
                if self._authority.index == self._swept_index:
                    # In the order in which they were fetched: the rest lives longer.
                    break
        self._swept_index = self._authority.index
        for query in ended:
            del self._kept[query]

    @override
    async def acquire(self, query: LeaseQuery, /) -> Lease | NoKey:
        kept = self._kept.get(query)
        if kept is not None:
            try:
                self._authority.ensure(kept)
            except LeaseEndedError:
                del self._kept[query]
            else:
                self._count("hit")
                return kept
        self._count("miss")
        if query.key_id or query.excluded_key_ids:
            return await self._fetch(query)
        return await self._share(query)

    @override
    def ensure_usable(self, lease: Lease, /) -> None:
        try:
            self._authority.ensure(lease)
        except LeaseEndedError as ended:
            _log.info("lease.ended", rule=ended.rule, lease_id=lease.lease_id, provider_key_id=lease.key_id)
            raise

    @override
    def report(self, outcome: Outcome, /) -> None:
        self._client.report(outcome)

    @override
    async def report_validation(self, report: ValidationReport, /) -> bytes:
        return await self._client.report_validation(report)

    async def _share(self, query: LeaseQuery) -> Lease | NoKey:
        fetching = self._fetching.get(query)
        if fetching is None:
            # In a context of its own: it serves others too, so that the deadline of the first must not end it.
            fetching = asyncio.get_running_loop().create_task(self._fetch(query), context=contextvars.Context())
            self._fetching[query] = fetching
            fetching.add_done_callback(lambda done: self._keep(query, done))
        found = await asyncio.shield(fetching)
        if isinstance(found, Lease) and found.is_strict:
            # One provider call a lease: only the one that asked first may have it.
            return found if self._claim(found) else await self._fetch(query)
        return found

    def _claim(self, lease: Lease) -> bool:
        if lease.lease_id in self._claimed:
            return False
        self._claimed.add(lease.lease_id)
        weakref.finalize(lease, self._claimed.discard, lease.lease_id)
        return True

    def _keep(self, query: LeaseQuery, fetched: asyncio.Task[Lease | NoKey]) -> None:
        del self._fetching[query]
        if fetched.cancelled() or fetched.exception() is not None:
            return
        answer = fetched.result()
        if isinstance(answer, Lease) and answer.is_strict:
            return
        if len(self._kept) >= self._limits.entries_max:
            # The oldest answer is the one that ends first, since all live equally long.
            del self._kept[next(iter(self._kept))]
        self._kept[query] = answer

    async def _fetch(self, query: LeaseQuery) -> Lease | NoKey:
        if not await self._authority.wait_for_contact(self._limits.contact_wait):
            # Nobody could tell us of a revocation, so that no lease may be used whatever KeyVault grants.
            _log.warning("lease.no_contact", waited_ms=self._limits.contact_wait // _MILLISECOND)
            raise SuiteUnavailableError(service="keyvault")
        for _ in range(self._limits.late_leases_max):
            answer = await self._client.acquire(query)
            if isinstance(answer, Lease):
                # The plaintext is overwritten when the last call that uses the lease has let go of it.
                weakref.finalize(answer, answer.secret.wipe)
            try:
                self._authority.ensure(answer)
            except LeaseEndedError as ended:
                _log.warning("lease.arrived_late", rule=ended.rule, authority_index=answer.authority_index)
                continue
            return answer
        raise SuiteUnavailableError(service="keyvault")

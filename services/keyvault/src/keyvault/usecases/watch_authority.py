"""WatchAuthority: tells watching Routers of every change, and lets them use what they cached a little longer.

One round of the hub, for all watchers of this process::

    take the pings that came ─▶ record that their watchers may go on, durably ─▶ read changes from the primary
                                                                   ─▶ send the changes ─▶ echo those pings

The order is what bounds a revocation: whatever is appended after the read finds the watcher in the registry, and waits
for it; whatever was appended before is sent ahead of the echo. A ping is echoed only once everything that was sent
before has been acknowledged, so a Router that does not act on changes runs out of time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import IndexedEntry
from keyvault.domain.new_keys import refused
from keyvault.ports import WatcherReport
from servicekit.errors import DomainError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from keyvault.ports import Alarms, AuthorityFeed, WatcherRegistry

PAGE_MAX: Final = 1000
PINGS_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class Ready:
    """The watch begins after this index."""

    authority_index: int
    partition_bound: timedelta


@dataclass(frozen=True, slots=True)
class Echo:
    """Answers a ping; every change up to the index was sent before."""

    monotonic_ns: int
    authority_index: int


@dataclass(frozen=True, slots=True)
class Draining:
    """This process is going away."""

    ends_in: timedelta


Message = Ready | IndexedEntry | Echo | Draining


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    """Bounds of watching."""

    partition_bound: timedelta = timedelta(seconds=3)
    poll: timedelta = timedelta(milliseconds=250)
    queue_max: int = 10_000
    watchers_max: int = 1_000
    forget_after: timedelta = timedelta(minutes=10)


class Watch:
    """One stream: what is to be sent on it, and what its Router has acknowledged."""

    def __init__(self, *, caller: str, holder: str, position: int, queue_max: int, wake: Callable[[], None]) -> None:
        """Start after `position`; the hub makes watches."""
        self.caller = caller
        self.holder = holder
        self.position = position
        self.acked = position
        self.sent = position
        self.has_news = False
        self._pings: deque[int] = deque(maxlen=PINGS_MAX)
        self._outbox: deque[Message] = deque()
        self._queue_max = queue_max
        self._wake = wake
        self._ready = asyncio.Event()
        self._is_closed = False
        self._is_overrun = False

    def ping(self, monotonic_ns: int) -> None:
        """Take a ping; the oldest is dropped when far too many wait."""
        self._pings.append(monotonic_ns)
        self._wake()

    def ack(self, audit_index: int) -> None:
        """Take an acknowledgement; nobody can acknowledge what was not sent."""
        self.acked = max(self.acked, min(audit_index, self.sent))
        self.has_news = True
        self._wake()

    @property
    def waiting_pings(self) -> int:
        """Return how many pings may be echoed: none before everything that was sent has been acknowledged."""
        return len(self._pings) if self.acked >= self.sent else 0

    def offer(self, changes: Iterable[IndexedEntry]) -> None:
        """Queue those changes that this watch has not seen."""
        for change in changes:
            if change.audit_index > self.position:
                self.position = self.sent = change.audit_index
                self._put(change)

    def echo(self, count: int, audit_index: int) -> None:
        """Queue the answers to the oldest `count` pings."""
        for _ in range(min(count, len(self._pings))):
            self._put(Echo(self._pings.popleft(), audit_index))

    def send(self, message: Message) -> None:
        """Queue a message of the hub's own."""
        self._put(message)

    def close(self) -> None:
        """End the stream after what is queued."""
        self._is_closed = True
        self._ready.set()

    async def messages(self) -> AsyncIterator[Message]:
        """Yield what is to be sent, until the watch is closed.

        Raises:
            OverloadedError: the Router takes messages more slowly than changes come; it must watch anew.
        """
        while True:
            while self._outbox:
                yield self._outbox.popleft()
            if self._is_overrun:
                raise OverloadedError("the watcher is too slow; drop the cache and watch anew", holder=self.holder)
            if self._is_closed:
                return
            self._ready.clear()
            await self._ready.wait()

    def _put(self, message: Message) -> None:
        if len(self._outbox) >= self._queue_max:
            self._is_overrun = True
        if not self._is_overrun:
            self._outbox.append(message)
        self._ready.set()


class WatchHub:
    """All watches of this process, fed by one reader of the log."""

    def __init__(self, *, feed: AuthorityFeed, registry: WatcherRegistry, alarms: Alarms, limits: WatchLimits) -> None:
        """Read `feed` and record in `registry`; `run` does the work."""
        self._feed = feed
        self._registry = registry
        self._alarms = alarms
        self._limits = limits
        self._watches: set[Watch] = set()
        self._position = 0
        self._woken = asyncio.Event()
        self._is_failing = False
        feed.on_change(self._woken.set)

    @property
    def watchers(self) -> int:
        """Return how many watches are open."""
        return len(self._watches)

    @property
    def is_failing(self) -> bool:
        """Return whether the last round failed: the database does not answer."""
        return self._is_failing

    @property
    def position(self) -> int:
        """Return the index up to which this process has told its watchers."""
        return self._position

    async def start(self) -> None:
        """Begin at the head of the log; before this, nobody may watch. Raises UnavailableError."""
        self._position = await self._feed.head()

    async def run(self) -> None:
        """Work until cancelled. A round that fails is told to the operator alone: watchers get no echo meanwhile."""
        rounds = 0
        while True:
            self._woken.clear()
            try:
                await self._round()
                if rounds % 1000 == 0:
                    await self._registry.forget(self._limits.forget_after)
                rounds += 1
                self._is_failing = False
            except DomainError as error:
                if not self._is_failing:
                    self._alarms.watch_failing(type(error).__name__, error.facts)
                self._is_failing = True
                self._woken.clear()
            await self._wait()

    async def open(self, *, caller: str, holder: str, resume_index: int) -> Watch:
        """Return a new watch, with the changes since `resume_index` queued; 0 starts at the head.

        Raises:
            InvalidArgumentError: the index is beyond the head of the log.
            OverloadedError: this process has as many watchers as it may have.
            UnavailableError: the log cannot be read.
        """
        if len(self._watches) >= self._limits.watchers_max:
            raise OverloadedError("this replica has as many watchers as it may have; watch at another")
        head = await self._feed.head()
        if not 0 <= resume_index <= head:
            raise refused(
                "hello.resume_index", "RESUME_BEYOND_HEAD", "Drop the cache and resume from 0: the log is shorter."
            )
        watch = Watch(
            caller=caller,
            holder=holder,
            position=resume_index or head,
            queue_max=self._limits.queue_max,
            wake=self._woken.set,
        )
        # Not the head when resuming: a Router that loses the stream after this message must resume from where it was.
        watch.send(Ready(watch.position, self._limits.partition_bound))
        while True:
            page = await self._feed.read_changes(watch.position, limit=PAGE_MAX)
            watch.offer(page.changes)
            # Attached in the same turn of the loop as the last page was offered, so that no change falls in between.
            if page.is_complete and page.head >= self._position:
                self._watches.add(watch)
                return watch

    def close(self, watch: Watch) -> None:
        """End a watch. Its Router stays in the registry until its time has passed."""
        self._watches.discard(watch)
        watch.close()

    def drain(self, ends_in: timedelta) -> None:
        """Ask every watcher to open another watch elsewhere before this process ends."""
        for watch in self._watches:
            watch.send(Draining(ends_in))

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._limits.poll.total_seconds()):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _round(self) -> None:
        echoing = [(watch, watch.waiting_pings) for watch in self._watches]
        reports = [
            WatcherReport(watch.caller, watch.holder, watch.acked, awaits_echo=count > 0)
            for watch, count in echoing
            if count or watch.has_news
        ]
        if reports:
            await self._registry.record(reports, self._limits.partition_bound)
        recorded = {(report.caller, report.holder): report.acked_index for report in reports}
        for watch, _ in echoing:
            watch.has_news = watch.has_news and watch.acked > recorded.get((watch.caller, watch.holder), -1)
        await self._read_on()
        for watch, count in echoing:
            if count:
                watch.echo(count, self._position)

    async def _read_on(self) -> None:
        while True:
            page = await self._feed.read_changes(self._position, limit=PAGE_MAX)
            for watch in self._watches:
                watch.offer(page.changes)
            self._position = page.head if page.is_complete else page.changes[-1].audit_index
            if page.is_complete:
                return

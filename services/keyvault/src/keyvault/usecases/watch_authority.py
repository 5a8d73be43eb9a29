"""WatchAuthority: tells watching Routers of every change, and lets them use what they cached a little longer.

One round of the hub, for all watchers of this process::

    take the pings that came ─▶ record that their watchers may go on, durably ─▶ read changes from the primary
                                                                   ─▶ send the changes ─▶ echo those pings

The order is what bounds a revocation: whatever is appended after the read finds the watcher in the registry, and waits
for it; whatever was appended before is sent ahead of the echo. A ping is echoed only once everything that was sent
before the ping came has been acknowledged, so a Router that does not act on changes runs out of time: no ping that
comes after a change was sent is echoed without it. What was sent since may be under way; to wait for that, too, would
starve the watchers of a busy log, where something always is.

A connection has an age at which the server ends it. Its watchers are told to open another watch before that, as they
are when this process ends, and leave this one only when the other has proved its contact.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import IndexedEntry
from keyvault.domain.new_keys import refused
from keyvault.ports import UntoldChange, WatcherReport
from servicekit.errors import DomainError, OverloadedError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from keyvault.ports import Alarms, AuthorityFeed, WatcherRegistry
    from servicekit.clock import Clock

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
    """This process is going away, or the connection is: open another watch before leaving this one."""

    ends_in: timedelta


Message = Ready | IndexedEntry | UntoldChange | Echo | Draining


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping as it came: `place` counts the pings of its watch, `sent` is the last index sent before it."""

    place: int
    monotonic_ns: int
    sent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchLimits:
    """Bounds of watching.

    Attributes:
        partition_bound: How long a watcher may use what it cached after its last echoed ping.
        poll: How often the log is read without a notification.
        age_max: After this a watch is asked to be replaced: before its connection is too old.
        handover: How long a watch that was asked to be replaced goes on.
        queue_max: Messages that may wait for one watcher.
        watchers_max: Watches that may be open.
        forget_after: When a watcher that has gone is forgotten.
    """

    partition_bound: timedelta = timedelta(seconds=3)
    age_max: timedelta = timedelta(minutes=45)
    handover: timedelta = timedelta(seconds=2)
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
        self.has_news = False
        self.leave_time = float("inf")
        self.is_leaving = False
        self._pinged = 0
        self._pings: deque[Ping] = deque(maxlen=PINGS_MAX)
        self._outbox: deque[Message] = deque()
        self._queue_max = queue_max
        self._wake = wake
        self._ready = asyncio.Event()
        self._is_closed = False
        self._is_overrun = False

    def ping(self, monotonic_ns: int) -> None:
        """Take a ping; the oldest is dropped when far too many wait."""
        self._pinged += 1
        self._pings.append(Ping(self._pinged, monotonic_ns, self.position))
        self._wake()

    def ack(self, audit_index: int) -> None:
        """Take an acknowledgement; nobody can acknowledge what was not sent."""
        self.acked = max(self.acked, min(audit_index, self.position))
        self.has_news = True
        self._wake()

    @property
    def echoable(self) -> int:
        """Return the place of the last ping that may be echoed: all that was sent before it has been acknowledged."""
        place = 0
        for ping in self._pings:
            if ping.sent > self.acked:
                break
            place = ping.place
        return place

    def offer(self, changes: Iterable[IndexedEntry | UntoldChange]) -> None:
        """Queue those changes that this watch has not seen."""
        for change in changes:
            if change.audit_index > self.position:
                self.position = change.audit_index
                self._put(change)

    def echo(self, place: int, audit_index: int) -> None:
        """Queue the answers to the pings up to this place; those that came later wait for a round of their own."""
        while self._pings and self._pings[0].place <= place:
            self._put(Echo(self._pings.popleft().monotonic_ns, audit_index))

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

    def __init__(
        self,
        *,
        feed: AuthorityFeed,
        registry: WatcherRegistry,
        alarms: Alarms,
        limits: WatchLimits,
        clock: Clock,
    ) -> None:
        """Read `feed` and record in `registry`; `run` does the work."""
        self._clock = clock
        self._feed = feed
        self._registry = registry
        self._alarms = alarms
        self._limits = limits
        self._watches: set[Watch] = set()
        self._position = 0
        self._woken = asyncio.Event()
        self._is_failing = False
        self._is_draining = False
        self._all_left = asyncio.Event()
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
            UnavailableError: the log cannot be read, or this process is going away.
        """
        if self._is_draining:
            raise UnavailableError("this replica is going away; watch at another")
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
        watch.leave_time = self._clock.monotonic() + self._limits.age_max.total_seconds()
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
        if not self._watches:
            self._all_left.set()

    async def drain(self, at_most: timedelta) -> None:
        """Ask every watcher to open another watch elsewhere, and wait until all have left this process."""
        self._is_draining = True
        self._all_left.clear()
        for watch in self._watches:
            watch.send(Draining(at_most))
        if self._watches:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(at_most.total_seconds()):
                    await self._all_left.wait()

    def _end_old(self) -> None:
        """Ask the watches that are old to be replaced, and end those that were asked."""
        now = self._clock.monotonic()
        for watch in [each for each in self._watches if each.leave_time <= now]:
            if watch.is_leaving:
                watch.close()
                continue
            watch.is_leaving = True
            watch.leave_time = now + self._limits.handover.total_seconds()
            watch.send(Draining(self._limits.handover))

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._limits.poll.total_seconds()):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _round(self) -> None:
        self._end_old()
        seen = [(watch, watch.echoable, watch.acked) for watch in self._watches]
        reports = [
            WatcherReport(watch.caller, watch.holder, acked, awaits_echo=place > 0)
            for watch, place, acked in seen
            if place or watch.has_news
        ]
        if reports:
            await self._registry.record(reports, self._limits.partition_bound)
        for watch, _, acked in seen:
            watch.has_news = watch.has_news and watch.acked > acked
        await self._read_on()
        for watch, place, _ in seen:
            watch.echo(place, self._position)

    async def _read_on(self) -> None:
        while True:
            page = await self._feed.read_changes(self._position, limit=PAGE_MAX)
            for change in page.changes:
                if isinstance(change, UntoldChange) and change.is_corrupt:
                    self._alarms.corruption_found(f"audit_entries/{change.audit_index}", "an entry cannot be read")
            for watch in self._watches:
                watch.offer(page.changes)
            self._position = page.head if page.is_complete else page.changes[-1].audit_index
            if page.is_complete:
                return

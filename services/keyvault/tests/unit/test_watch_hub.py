"""The watch hub: order, acknowledgement, resumption, and what bounds a revocation."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from keyvault.adapters.memory import MemoryAuthority, MemoryKeyringStore, MemoryWatcherRegistry
from keyvault.domain.audit_log import AuditEntry, EntryKind, IndexedEntry
from keyvault.ports import Alarms, AuthorityChanges, UntoldChange, WatcherReport
from keyvault.usecases.revoke_provider_key import AwaitWatchers
from keyvault.usecases.watch_authority import Draining, Echo, Message, Ready, Watch, WatchHub, WatchLimits
from servicekit.errors import InvalidArgumentError, OverloadedError, UnavailableError
from services.keyvault.tests.unit.builders import NOW, leaf_sealer
from testkit.fake_clock import FakeClock
from testkit.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

BOUND = timedelta(seconds=3)
AGE_MAX = timedelta(minutes=45)
HANDOVER = timedelta(seconds=2)
CHANGE = AuditEntry(kind=EntryKind.KEY_UPDATED, time=NOW, caller="edge", provider_key_id="key")
LEASE = AuditEntry(kind=EntryKind.LEASE_GRANTED, time=NOW, caller="router", provider_key_id="key")


class Feed(MemoryAuthority):
    """A log in memory that can be away, and that calls a hook between the registry and the reading."""

    def __init__(self) -> None:
        super().__init__(MemoryKeyringStore(), leaf_sealer())
        self.is_away = False
        self.attempts = 0
        self.before_reading: Callable[[], None] = lambda: None
        self.untold: list[UntoldChange] = []

    @override
    async def read_changes(self, after: int, *, limit: int) -> AuthorityChanges:
        self.attempts += 1
        if self.is_away:
            raise UnavailableError("away")
        self.before_reading()
        page = await super().read_changes(after, limit=limit)
        untold = {change.audit_index: change for change in self.untold}
        changes = [untold.get(change.audit_index, change) for change in page.changes]
        return replace(page, changes=changes)


class Registry(MemoryWatcherRegistry):
    """A registry that remembers what it was told, and can be away."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        super().__init__(self.clock)
        self.reports: list[WatcherReport] = []
        self.is_away = False
        self.attempts = 0

    @override
    async def record(self, reports: Sequence[WatcherReport], bound: timedelta) -> None:
        self.attempts += 1
        if self.is_away:
            raise UnavailableError("away")
        self.reports.extend(reports)
        await super().record(reports, bound)


class Alarmed(Alarms):
    """Remembers what the operator was told."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.corrupt: list[str] = []

    @override
    def corruption_found(self, row_id: str, what: str) -> None:
        self.corrupt.append(row_id)

    @override
    def watch_failing(self, what: str, facts: Mapping[str, str | int]) -> None:
        self.failures.append(what)

    @override
    def lease_bound_reached(self, caller: str) -> None:
        raise AssertionError(caller)


class Desk:
    """A hub at work and its surroundings."""

    def __init__(self, limits: WatchLimits) -> None:
        self.feed = Feed()
        self.registry = Registry()
        self.alarms = Alarmed()
        self.clock = FakeClock()
        self.hub = WatchHub(feed=self.feed, registry=self.registry, alarms=self.alarms, limits=limits, clock=self.clock)

    async def rounds(self, count: int = 2) -> None:
        """Wait until the hub has begun so many more rounds; the one before the last has then ended."""
        wanted = self.feed.attempts + self.registry.attempts + count

        async def attempts() -> int:
            return self.feed.attempts + self.registry.attempts

        await eventually(attempts, lambda seen: seen >= wanted)

    async def watch(self, resume_index: int = 0, holder: str = "h1") -> Watch:
        """Open a watch."""
        return await self.hub.open(caller="router", holder=holder, resume_index=resume_index)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    """Return a hub that runs."""
    limits = WatchLimits(
        partition_bound=BOUND,
        poll=timedelta(milliseconds=20),
        queue_max=20,
        watchers_max=3,
        age_max=AGE_MAX,
        handover=HANDOVER,
    )
    desk = Desk(limits)
    await desk.feed.append([LEASE])
    await desk.hub.start()
    running = asyncio.create_task(desk.hub.run())
    yield desk
    running.cancel()


async def take(watch: Watch, count: int) -> list[Message]:
    """Return the next messages of a watch."""
    found: list[Message] = []
    async with asyncio.timeout(5):
        async for message in watch.messages():
            found.append(message)
            if len(found) == count:
                break
    return found


def indexes(messages: Sequence[Message]) -> list[int]:
    """Return the audit indexes of changes."""
    return [message.audit_index for message in messages if isinstance(message, IndexedEntry)]


async def test_a_watch_begins_where_it_says(desk: Desk) -> None:
    """From 0 it starts at the head; resumed, it brings what was missed."""
    await desk.feed.append([CHANGE, CHANGE])
    assert await take(await desk.watch(), 1) == [Ready(3, BOUND)]
    resumed = await take(await desk.watch(resume_index=2), 2)
    assert resumed[0] == Ready(2, BOUND)
    assert indexes(resumed) == [3]


async def test_changes_are_told_and_leases_are_not(desk: Desk) -> None:
    """Only changes of authority concern a cache."""
    watch = await desk.watch()
    await desk.feed.append([CHANGE, LEASE, CHANGE])
    assert indexes(await take(watch, 3)) == [2, 4]


async def test_an_echo_follows_the_changes_before_it(desk: Desk) -> None:
    """What was appended before the reading is sent ahead of the echo, and the echo names its index."""
    watch = await desk.watch()
    await desk.feed.append([CHANGE])
    watch.ping(17)
    found = await take(watch, 2)
    watch.ack(2)
    found += await take(watch, 1)
    assert indexes(found) == [2]
    assert found[-1] == Echo(17, 2)


async def test_a_change_during_the_round_goes_before_the_echo(desk: Desk) -> None:
    """A revocation that is committed after the ping was taken, and before the log is read, is ahead of the echo."""
    watch = await desk.watch()
    await take(watch, 1)
    appended = False

    def append_once() -> None:
        nonlocal appended
        if desk.registry.reports and not appended:
            appended = True
            desk.feed._append([CHANGE])

    desk.feed.before_reading = append_once
    watch.ping(1)
    found = await take(watch, 2)
    assert [type(message) for message in found] == [IndexedEntry, Echo]


async def test_time_is_recorded_before_an_echo_is_sent(desk: Desk) -> None:
    """A watcher is never told to go on unless every replica can see that it does."""
    watch = await desk.watch()
    await take(watch, 1)
    desk.registry.is_away = True
    watch.ping(1)
    await desk.rounds(4)
    assert await desk.registry.pending(99) == frozenset()
    assert not watch._outbox
    desk.registry.is_away = False
    assert await take(watch, 1) == [Echo(1, 1)]
    assert await desk.registry.pending(99) == {("router", "h1")}


async def test_no_echo_while_the_log_cannot_be_read(desk: Desk) -> None:
    """A partition from the primary ends what is cached, by time."""
    watch = await desk.watch()
    await take(watch, 1)
    desk.feed.is_away = True
    watch.ping(1)
    await desk.rounds(4)
    assert desk.hub.is_failing
    assert desk.alarms.failures == ["UnavailableError"]
    assert not watch._outbox
    desk.feed.is_away = False
    assert await take(watch, 1) == [Echo(1, 1)]
    assert not desk.hub.is_failing


async def test_a_watcher_that_does_not_acknowledge_gets_no_echo(desk: Desk) -> None:
    """Who ignores changes runs out of time; acknowledging lets it go on, and cannot be done in advance."""
    watch = await desk.watch()
    watch.ack(1000)
    await desk.feed.append([CHANGE])
    await take(watch, 2)
    watch.ping(1)
    await desk.rounds(4)
    assert not watch._outbox
    watch.ack(2)
    assert await take(watch, 1) == [Echo(1, 2)]
    assert desk.registry.reports[-1] == WatcherReport("router", "h1", 2, awaits_echo=True)


async def test_a_revocation_waits_for_acknowledgement(desk: Desk) -> None:
    """It answers when the watcher has acknowledged, and says so."""
    watch = await desk.watch()
    watch.ping(1)
    await take(watch, 2)
    await desk.feed.append([CHANGE])
    await take(watch, 1)
    clock = desk.registry.clock
    waiting = asyncio.create_task(AwaitWatchers(desk.registry, clock=clock, poll=timedelta(milliseconds=20))(2))
    await clock.advance(timedelta(milliseconds=20))
    assert not waiting.done()
    watch.ack(2)
    await desk.rounds()
    await clock.advance(timedelta(milliseconds=20))
    assert await asyncio.wait_for(waiting, 5) == (1, 0)


async def test_a_revocation_waits_no_longer_than_the_bound(desk: Desk) -> None:
    """A watcher that is gone is waited for until its time has passed; the registry's clock tells."""
    watch = await desk.watch()
    watch.ping(1)
    await take(watch, 2)
    desk.hub.close(watch)
    await desk.feed.append([CHANGE])
    clock = desk.registry.clock
    waiting = asyncio.create_task(AwaitWatchers(desk.registry, clock=clock, poll=timedelta(seconds=1))(2))
    for _ in range(2):
        await clock.advance(timedelta(seconds=1))
        assert not waiting.done()
    await clock.advance(timedelta(seconds=1))
    assert await asyncio.wait_for(waiting, 5) == (0, 1)


async def test_a_log_that_became_shorter_is_noticed(desk: Desk) -> None:
    """A Router that has seen more than the log holds must drop its cache: the database was restored."""
    with pytest.raises(InvalidArgumentError) as caught:
        await desk.watch(resume_index=2)
    assert caught.value.violations[0].reason == "RESUME_BEYOND_HEAD"


async def test_a_slow_watcher_is_cut_off(desk: Desk) -> None:
    """What it does not take is bounded; it watches anew."""
    watch = await desk.watch()
    await desk.feed.append([CHANGE] * 30)
    await desk.rounds(4)
    with pytest.raises(OverloadedError):
        await take(watch, 31)


async def test_watchers_are_bounded(desk: Desk) -> None:
    """One replica takes so many, and more again when one leaves."""
    watches = [await desk.watch(holder=str(each)) for each in range(3)]
    with pytest.raises(OverloadedError):
        await desk.watch()
    desk.hub.close(watches[0])
    await desk.watch()
    assert desk.hub.watchers == 3


async def test_draining_waits_until_all_have_left(desk: Desk) -> None:
    """Watchers open another watch elsewhere before this process ends, and here nobody may begin one."""
    watch = await desk.watch()
    draining = asyncio.create_task(desk.hub.drain(timedelta(seconds=60)))
    assert (await take(watch, 2))[1] == Draining(timedelta(seconds=60))
    with pytest.raises(UnavailableError):
        await desk.watch(holder="h2")
    watch.ping(1)
    assert await take(watch, 1) == [Echo(1, 1)]
    assert not draining.done()
    desk.hub.close(watch)
    await asyncio.wait_for(draining, 5)


async def test_draining_ends_although_somebody_stays(desk: Desk) -> None:
    """A Router that stands still keeps no process from ending."""
    await desk.watch()
    await asyncio.wait_for(desk.hub.drain(timedelta(milliseconds=50)), 5)


async def test_an_old_watch_is_replaced_before_its_connection_ends(desk: Desk) -> None:
    """It is asked to be replaced in time, goes on meanwhile, and is ended when nobody replaces it."""
    watch = await desk.watch()
    await take(watch, 1)
    await desk.clock.advance(AGE_MAX - timedelta(seconds=1))
    await desk.rounds(4)
    assert not watch._outbox
    await desk.clock.advance(timedelta(seconds=1))
    assert await take(watch, 1) == [Draining(HANDOVER)]
    watch.ping(1)
    assert await take(watch, 1) == [Echo(1, 1)]
    await desk.clock.advance(HANDOVER)
    assert await take(watch, 1) == []


async def test_a_busy_log_starves_no_watcher(desk: Desk) -> None:
    """What was sent after a ping came need not be acknowledged for its echo: something always is under way."""
    watch = await desk.watch()
    await desk.feed.append([CHANGE])
    await take(watch, 2)
    watch.ping(1)
    await desk.feed.append([CHANGE])
    await take(watch, 1)
    watch.ack(2)
    assert await take(watch, 1) == [Echo(1, 3)]
    watch.ping(2)
    await desk.rounds(4)
    assert not watch._outbox


async def test_a_ping_that_comes_during_a_round_waits_for_the_next(desk: Desk) -> None:
    """Only those pings are echoed that came before the log was read, however many come meanwhile."""
    watch = await desk.watch()
    await take(watch, 1)
    came = 0

    def flood() -> None:
        nonlocal came
        if desk.registry.reports and not came:
            came = 100
            for number in range(came):
                watch.ping(1000 + number)
            desk.registry.is_away = True

    desk.feed.before_reading = flood
    watch.ping(1)
    await desk.rounds(6)
    assert came
    assert not watch._outbox
    desk.registry.is_away = False
    assert await take(watch, 1) == [Echo(1036, 1)]


async def test_a_change_that_cannot_be_told_keeps_nobody_waiting(desk: Desk) -> None:
    """An entry that nobody can read is told as one, with an alarm, and the watch goes on behind it."""
    watch = await desk.watch()
    await take(watch, 1)
    desk.feed.untold = [UntoldChange(2, is_corrupt=True)]
    await desk.feed.append([CHANGE, CHANGE])
    assert await take(watch, 2) == [UntoldChange(2, is_corrupt=True), IndexedEntry(3, CHANGE)]
    watch.ack(3)
    watch.ping(1)
    assert await take(watch, 1) == [Echo(1, 3)]
    assert desk.alarms.corrupt == ["audit_entries/2"]
    assert not desk.hub.is_failing


async def test_pages_of_changes_are_all_told() -> None:
    """A watcher that was away for long gets every change once, in order, while others go on."""
    desk = Desk(WatchLimits(queue_max=10_000, poll=timedelta(milliseconds=20)))
    await desk.feed.append([CHANGE] * 2500)
    await desk.hub.start()
    running = asyncio.create_task(desk.hub.run())
    opening = asyncio.create_task(desk.watch(resume_index=1))
    await desk.feed.append([CHANGE] * 20)
    found = await take(await opening, 2520)
    assert indexes(found) == list(range(2, 2521))
    running.cancel()

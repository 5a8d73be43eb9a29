"""KeyVault's log is witnessed in Postgres; what contradicts it stops admission on every replica, and nothing else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import asyncpg
import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from metering.adapters.postgres.custody import PostgresCustodyWitnesses
from metering.domain.accounts import AccountKey
from metering.domain.custody import AcceptedRestore, Contradiction, CustodyRecord, CustodyState, LogPage
from metering.domain.errors import CustodyLogRolledBackError, DependencyUnavailableError
from metering.domain.reservations import ExtendCommand, Extended, Released
from metering.usecases.accept_custody_restore import AcceptCustodyRestore
from metering.usecases.settle_batch import Settlement
from metering.usecases.witness_custody import CustodyPace, Finding, WitnessCustody
from metering.workers.witness import Witness
from servicekit.errors import InvalidArgumentError
from services.metering.tests.custody import AuditLog, MemoryCustodyLog, signer
from services.metering.tests.rig import Rig, asked, open_rig, released, settled
from testkit.fake_clock import FakeClock

EAGER = CustodyPace(read=timedelta(0))


class Replicas:
    """Starts replicas on the same stores beside the same KeyVault."""

    def __init__(self, dsn: str, redis_url: str, stack: AsyncExitStack) -> None:
        self.log = AuditLog(9)
        self._stores = (dsn, redis_url)
        self._stack = stack

    async def start(self) -> Rig:
        """Return a replica that has a licence and looked at the record, as one that was just started has."""
        rig = await self._stack.enter_async_context(open_rig(*self._stores, log=self.log))
        await rig.replica.keeper.round()
        assert await rig.replica.keeper.round()
        return rig

    def reader(
        self, rig: Rig, *, pinned: tuple[str, ...] = (), source: MemoryCustodyLog | None = None
    ) -> WitnessCustody:
        """Return a witness on a replica's record and gate that reads whenever it is told to."""
        return WitnessCustody(
            witnesses=rig.replica.stores.witnesses,
            log=source or MemoryCustodyLog(self.log),
            gate=rig.replica.gate,
            clock=rig.clock,
            pinned_keys=pinned,
            pace=EAGER,
        )


@pytest.fixture
async def replicas(metering_dsn: str, redis_database: str) -> AsyncIterator[Replicas]:
    """Return what starts replicas on stores of their own."""
    async with AsyncExitStack() as stack:
        yield Replicas(metering_dsn, redis_database, stack)


async def may_reserve(rig: Rig, account: AccountKey) -> bool:
    """Tell whether a reserve is let in."""
    try:
        await rig.granted(asked(rig, account, "agent-1"))
    except CustodyLogRolledBackError:
        return False
    return True


def restore_of(rig: Rig, size: int, **more: str) -> AcceptedRestore:
    """Return an operator's word about a witnessed size."""
    return AcceptedRestore(
        request_id=more.get("request_id") or rig.new_id(),
        actor=more.get("actor", "operator-1"),
        reason="restored from last night's backup",
        witnessed_size=size,
    )


async def test_a_rolled_back_log_stops_admission_everywhere_until_it_is_accepted(replicas: Replicas) -> None:
    """Also on a replica that did not read it, and on one that is started afterwards; what was admitted goes on."""
    first, second = await replicas.start(), await replicas.start()
    account = await first.register("owner-1", "agent-1")
    assert await replicas.reader(first).read_log() is Finding.WITNESSED
    to_settle, to_release, to_keep = (asked(first, account, "agent-1") for _ in range(3))
    grants = [await first.granted(each) for each in (to_settle, to_release, to_keep)]

    replicas.log.restore(6)
    # The control: before anybody has read the log again, the calls that a restored vault allows would go through.
    assert await may_reserve(first, account)
    assert await may_reserve(second, account)
    assert await replicas.reader(first).read_log() is Finding.ROLLED_BACK
    assert not await may_reserve(first, account)
    await second.replica.custody.look()
    assert not await may_reserve(second, account)
    third = await replicas.start()
    assert not await may_reserve(third, account)

    assert isinstance(await first.settle(settled(to_settle, grants[0])), Settlement)
    assert isinstance((await second.admission.release([released(to_release)]))[0], Released)
    extension = ExtendCommand(
        reservation_id=grants[2].reservation_id, call=to_keep.command.call, account=account, ttl_ms=60_000
    )
    assert isinstance((await third.admission.extend([extension]))[0], Extended)

    # An answer that was paid for is given again; an operation that nobody knows may not even begin.
    await first.flush()
    command = to_settle.command
    found = await third.admission.lookup(
        command.call.request_id, agent_id="", account=account, body_hash=command.facts.body_hash
    )
    assert found.outcome is not None
    with pytest.raises(CustodyLogRolledBackError):
        await third.admission.lookup(third.new_id(), agent_id="", account=account, body_hash=bytes(16))

    # It grows again beyond what was witnessed: that it was rolled back stays true, and nobody reads any more.
    replicas.log.grow(10)
    reads = replicas.log.reads
    assert await replicas.reader(second).read_log() is Finding.NOTHING
    assert (replicas.log.reads, await may_reserve(second, account)) == (reads, False)

    record = await second.accounts.accept_custody_restore(restore_of(second, 9))
    assert (record.state, record.size, record.contradiction) == (CustodyState.CONSISTENT, 16, None)
    assert await may_reserve(second, account)
    await first.replica.custody.look()
    assert await may_reserve(first, account)
    assert await replicas.reader(first).read_log() is Finding.CONFIRMED
    (row,) = await first.fetch("SELECT * FROM custody_restores")
    assert (row["actor"], row["given_up_size"], row["accepted_size"]) == ("operator-1", 9, 16)
    assert row["reason"] == "restored from last night's backup"
    assert "shorter" in row["description"]


async def test_what_cannot_be_read_stops_nothing(replicas: Replicas) -> None:
    """KeyVault away is an alarm: the age of the witness grows, and calls go on."""
    rig = await replicas.start()
    account = await rig.register("owner-1", "agent-1")
    await replicas.reader(rig).read_log()
    clock = FakeClock()
    custody = WitnessCustody(
        witnesses=rig.replica.stores.witnesses,
        log=MemoryCustodyLog(replicas.log),
        gate=rig.replica.gate,
        clock=clock,
        pace=EAGER,
    )
    witness = Witness(custody=custody, clock=clock)
    assert await witness.round() == timedelta(seconds=1)
    replicas.log.is_down = True
    with capture_logs() as logged:
        for _ in range(3):
            assert await witness.round() == DependencyUnavailableError.retry_after
        await clock.advance(timedelta(seconds=61))
        await witness.round()
    assert [each["event"] for each in logged] == ["custody.not_read", "custody.witness_is_old"]
    await clock.advance(timedelta(seconds=40))
    assert custody.age_seconds > 40
    assert await may_reserve(rig, account)
    replicas.log.is_down = False
    assert await witness.round() == timedelta(seconds=1)
    assert custody.age_seconds < 10


async def test_a_log_that_keyvault_finds_corrupt_stops_admission_once(replicas: Replicas) -> None:
    """Else whoever spoils the log hides that it was rolled back. Accepted, it does not stop everything for good."""
    rig = await replicas.start()
    account = await rig.register("owner-1", "agent-1")
    reader = replicas.reader(rig)
    await reader.read_log()
    replicas.log.corrupt_at = 10
    assert await reader.read_log() is Finding.ROLLED_BACK
    assert not await may_reserve(rig, account)
    await rig.accounts.accept_custody_restore(restore_of(rig, 9))
    with pytest.raises(DependencyUnavailableError, match="index 10"):
        await reader.read_log()
    assert await may_reserve(rig, account)
    # What else is found afterwards is news.
    replicas.log.corrupt_at = 12
    assert await reader.read_log() is Finding.ROLLED_BACK
    await rig.accounts.accept_custody_restore(restore_of(rig, 9))
    replicas.log.restore(4)
    assert await reader.read_log() is Finding.ROLLED_BACK


async def test_an_accepted_entry_that_cannot_be_told_does_not_blind_the_witness(replicas: Replicas) -> None:
    """The tree is read past it, so that a roll-back is found as before."""
    rig = await replicas.start()
    reader = replicas.reader(rig)
    await reader.read_log()
    replicas.log.grow(3)
    replicas.log.spoiled_entry = 11
    assert await reader.read_log() is Finding.ROLLED_BACK
    await rig.accounts.accept_custody_restore(restore_of(rig, 9))
    replicas.log.grow(1)
    assert await reader.read_log() is Finding.WITNESSED
    replicas.log.fork(10, to=20)
    assert await reader.read_log() is Finding.ROLLED_BACK


async def test_a_log_that_has_not_begun_is_waited_for(replicas: Replicas) -> None:
    """A KeyVault that has signed nothing yet contradicts nothing."""
    rig = await replicas.start()
    account = await rig.register("owner-1", "agent-1")

    class Unsigned(MemoryCustodyLog):
        @override
        async def read(self, *, witnessed_size: int, after_index: int) -> LogPage:
            return LogPage(checkpoint="")

    assert await replicas.reader(rig, source=Unsigned(replicas.log)).read_log() is Finding.NOTHING
    assert await may_reserve(rig, account)
    await replicas.reader(rig).read_log()
    assert await replicas.reader(rig, source=Unsigned(replicas.log)).read_log() is Finding.ROLLED_BACK


class SlowLog(MemoryCustodyLog):
    """A log whose answer is on its way for as long as a test wants."""

    def __init__(self, log: AuditLog) -> None:
        super().__init__(log)
        self.answered = asyncio.Event()
        self.arrives = asyncio.Event()

    @override
    async def read(self, *, witnessed_size: int, after_index: int) -> LogPage | Contradiction:
        page = await super().read(witnessed_size=witnessed_size, after_index=after_index)
        self.answered.set()
        await self.arrives.wait()
        return page


async def test_a_replica_that_reads_slowly_moves_nothing_back(replicas: Replicas) -> None:
    """What another has witnessed meanwhile stands, and an honest log is not taken for a shorter one."""
    first, second = await replicas.start(), await replicas.start()
    await replicas.reader(first).read_log()
    replicas.log.grow(1)
    slow = SlowLog(replicas.log)
    reading = asyncio.create_task(replicas.reader(first, source=slow).read_log())
    await slow.answered.wait()
    replicas.log.grow(5)
    assert await replicas.reader(second).read_log() is Finding.WITNESSED
    slow.arrives.set()
    assert await reading is Finding.NOTHING
    record = await first.accounts.get_custody_witness()
    assert (record.state, record.size) == (CustodyState.CONSISTENT, 15)


async def test_a_fork_shown_to_one_replica_counts_although_another_saw_the_log_go_on(replicas: Replicas) -> None:
    """A split view: whoever was shown the other log has the proof, and a newer checkpoint does not undo it."""
    first, second = await replicas.start(), await replicas.start()
    await replicas.reader(first).read_log()
    forked = AuditLog(9)
    forked.fork(5, to=11)
    slow = SlowLog(forked)
    reading = asyncio.create_task(replicas.reader(first, source=slow).read_log())
    await slow.answered.wait()
    replicas.log.grow(5)
    assert await replicas.reader(second).read_log() is Finding.WITNESSED
    slow.arrives.set()
    assert await reading is Finding.ROLLED_BACK
    assert (await second.accounts.get_custody_witness()).state is CustodyState.ROLLED_BACK


async def test_a_finding_from_before_a_restore_does_not_undo_its_acceptance(replicas: Replicas) -> None:
    """What was read before the operator spoke is judged by a witness that was given up."""
    first, second = await replicas.start(), await replicas.start()
    account = await first.register("owner-1", "agent-1")
    await replicas.reader(first).read_log()
    replicas.log.restore(4)
    slow = SlowLog(replicas.log)
    reading = asyncio.create_task(replicas.reader(first, source=slow).read_log())
    await slow.answered.wait()
    await replicas.reader(second).read_log()
    await second.accounts.accept_custody_restore(restore_of(second, 9))
    slow.arrives.set()
    assert await reading is Finding.NOTHING
    assert (await first.accounts.get_custody_witness()).size == 4
    assert await may_reserve(first, account)


async def test_a_contradiction_stops_its_finder_also_when_postgres_cannot_be_told(replicas: Replicas) -> None:
    """The gate closes before the row is written, and opens only when an operator has spoken."""

    class Unwritable(PostgresCustodyWitnesses):
        @override
        async def contradict(self, record: CustodyRecord, contradiction: Contradiction) -> bool:
            raise DependencyUnavailableError("Postgres is away.", dependency="postgres")

    rig = await replicas.start()
    account = await rig.register("owner-1", "agent-1")
    await replicas.reader(rig).read_log()
    replicas.log.restore(4)
    witnesses = rig.replica.stores.witnesses
    unwritable = Unwritable(witnesses._database)
    custody = WitnessCustody(
        witnesses=unwritable, log=MemoryCustodyLog(replicas.log), gate=rig.replica.gate, clock=rig.clock, pace=EAGER
    )
    with pytest.raises(DependencyUnavailableError):
        await custody.read_log()
    assert not await may_reserve(rig, account)
    # The row knows nothing of it, and looking at the row does not open the gate.
    assert (await custody.look()).state is CustodyState.CONSISTENT
    assert not await may_reserve(rig, account)


async def test_one_of_two_operators_accepts_and_the_other_is_told(replicas: Replicas) -> None:
    """At the same moment; and the one who is heard may ask again under the same request id."""
    first, second = await replicas.start(), await replicas.start()
    await replicas.reader(first).read_log()
    replicas.log.restore(4)
    await replicas.reader(first).read_log()
    restores = [restore_of(first, 9, actor=f"operator-{number}") for number in range(2)]
    results = await asyncio.gather(
        first.accounts.accept_custody_restore(restores[0]),
        second.accounts.accept_custody_restore(restores[1]),
        return_exceptions=True,
    )
    (winner,) = [number for number, result in enumerate(results) if isinstance(result, CustodyRecord)]
    loser = results[1 - winner]
    assert isinstance(loser, InvalidArgumentError)
    assert loser.violations[0].field == "witnessed_size"
    again = await first.accounts.accept_custody_restore(restores[winner])
    assert (again.epoch, again.size) == (1, 4)
    assert [row["actor"] for row in await first.fetch("SELECT actor FROM custody_restores")] == [f"operator-{winner}"]


async def test_the_same_acceptance_twice_at_once_is_one(replicas: Replicas) -> None:
    """A caller that was cut off asks again while its first request is still under way."""
    first, second = await replicas.start(), await replicas.start()
    await replicas.reader(first).read_log()
    replicas.log.restore(4)
    await replicas.reader(first).read_log()
    restore = restore_of(first, 9)
    records = await asyncio.gather(*(rig.accounts.accept_custody_restore(restore) for rig in (first, second)))
    assert [(record.epoch, record.size) for record in records] == [(1, 4), (1, 4)]


async def test_an_operator_accepts_only_what_they_have_seen(replicas: Replicas) -> None:
    """Not a witness that is in force, and not another one than they name."""
    rig = await replicas.start()
    await replicas.reader(rig).read_log()
    with pytest.raises(InvalidArgumentError) as early:
        await rig.accounts.accept_custody_restore(restore_of(rig, 9))
    assert early.value.violations[0].reason == "NOT_ROLLED_BACK"
    replicas.log.restore(4)
    await replicas.reader(rig).read_log()
    with pytest.raises(InvalidArgumentError) as blind:
        await rig.accounts.accept_custody_restore(restore_of(rig, 4))
    assert blind.value.violations[0].reason == "WITNESS_MOVED"
    assert (await rig.accounts.get_custody_witness()).state is CustodyState.ROLLED_BACK


async def test_pinned_keys_are_the_only_ones(replicas: Replicas) -> None:
    """Another key stops everything, and an operator's word does not make it trusted; pinning it does."""
    rig = await replicas.start()
    pinned = replicas.log.verifier_keys
    assert await replicas.reader(rig, pinned=pinned).read_log() is Finding.WITNESSED
    replicas.log.keys = (signer(1), signer(2))
    replicas.log.grow(1)
    assert await replicas.reader(rig, pinned=pinned).read_log() is Finding.WITNESSED
    replicas.log.keys = (signer(2),)
    assert await replicas.reader(rig, pinned=pinned).read_log() is Finding.ROLLED_BACK

    def accepting(keys: tuple[str, ...]) -> AcceptCustodyRestore:
        return AcceptCustodyRestore(
            witness=rig.replica.custody,
            witnesses=rig.replica.stores.witnesses,
            log=MemoryCustodyLog(replicas.log),
            pinned_keys=keys,
        )

    with pytest.raises(DependencyUnavailableError, match="verifier_keys"):
        await accepting(pinned)(restore_of(rig, 10))
    record = await accepting(replicas.log.verifier_keys)(restore_of(rig, 10))
    assert record.verifier_keys == replicas.log.verifier_keys


async def test_a_key_that_the_trusted_one_signed_beside_is_trusted_without_a_pin(replicas: Replicas) -> None:
    """A rotation stops nothing when both keys signed for a while, also while the log did not grow."""
    rig = await replicas.start()
    reader = replicas.reader(rig)
    await reader.read_log()
    replicas.log.keys = (signer(1), signer(2))
    assert await reader.read_log() is Finding.CONFIRMED
    replicas.log.keys = (signer(2),)
    replicas.log.grow(1)
    assert await reader.read_log() is Finding.WITNESSED
    # The control: a key that nobody vouched for.
    replicas.log.keys = (signer(3),)
    assert await reader.read_log() is Finding.ROLLED_BACK


async def test_whoever_writes_past_the_rules_is_refused_by_the_database(replicas: Replicas) -> None:
    """No statement takes the witness back or ends a roll-back, unless a restore was accepted."""
    rig = await replicas.start()
    await replicas.reader(rig).read_log()
    forbidden = ["UPDATE custody_witness SET size = 3", "DELETE FROM custody_witness"]
    for statement in forbidden:
        with pytest.raises(asyncpg.RaiseError):
            await rig.fetch(statement)
    replicas.log.restore(4)
    await replicas.reader(rig).read_log()
    for statement in ("UPDATE custody_witness SET state = 2", "UPDATE custody_witness SET epoch = 1, state = 2"):
        with pytest.raises(asyncpg.RaiseError):
            await rig.fetch(statement)


async def test_superseded_checkpoints_are_kept_but_not_all_of_them(replicas: Replicas) -> None:
    """One a minute is enough to tell since when a log was forked, and what is given up is kept in any case."""
    rig = await replicas.start()
    reader = replicas.reader(rig)
    for _ in range(4):
        replicas.log.grow(1)
        await reader.read_log()
    rows = await rig.fetch("SELECT size FROM custody_checkpoints")
    assert [row["size"] for row in rows] == [10]
    await rig.fetch("UPDATE custody_checkpoints SET supersede_time = supersede_time - interval '8 days'")
    replicas.log.grow(1)
    await reader.read_log()
    rows = await rig.fetch("SELECT size FROM custody_checkpoints")
    assert [row["size"] for row in rows] == [13]


async def test_replicas_share_the_reading(replicas: Replicas) -> None:
    """What one has just read, another does not ask KeyVault for again."""
    first, second = await replicas.start(), await replicas.start()
    assert await first.replica.custody.read_log() is Finding.WITNESSED
    reads = replicas.log.reads
    assert await second.replica.custody.read_log() is Finding.NOTHING
    assert replicas.log.reads == reads

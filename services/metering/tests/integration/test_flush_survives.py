"""The flush dies at every step, and the ledger comes out the same, byte for byte."""

from collections.abc import Sequence
from datetime import timedelta

import asyncpg
import pytest
from typing_extensions import override

from metering.domain.errors import DependencyUnavailableError, FencedFlushError
from metering.domain.licences import Watermark
from metering.domain.outbox import FlushBatch, OutboxRecord
from metering.ports import Outbox
from metering.workers.flush import Flusher
from services.metering.tests.rig import Rig, asked, open_rig, released, settled

# A table that the flush writes, in the order in which it comes to them.
SILENT = timedelta(seconds=6)
TABLES = ("partitions", "holds", "ledger_entries", "usage_quarters", "usage_days", "kept_answers")


class Died(Exception):  # noqa: N818 (it is a death, not an error of the program)
    """The process ended here."""


class DyingOutbox(Outbox):
    """An outbox whose reader dies before it can trim."""

    def __init__(self, inner: Outbox) -> None:
        self._inner = inner

    @override
    async def read(self, positions: Sequence[Watermark], *, count: int) -> list[OutboxRecord]:
        return await self._inner.read(positions, count=count)

    @override
    async def trim(self, positions: Sequence[Watermark]) -> None:
        raise Died

    @override
    async def backlog(self, positions: Sequence[Watermark]) -> dict[int, int]:
        return await self._inner.backlog(positions)


class DyingLedger:
    """A ledger whose writer dies just before it writes."""

    async def commit(self, batch: FlushBatch) -> int:
        """Die."""
        raise Died


def flusher(rig: Rig, *, outbox: Outbox | None = None, ledger: object | None = None) -> Flusher:
    """Return a flusher of this replica, with parts that die."""
    stores = rig.replica.stores
    return Flusher(
        replica=rig.replica.name,
        outbox=outbox or stores.outbox,
        ledger=ledger or stores.ledger,  # type: ignore[arg-type]  # it dies at the one method that is called
        licences=stores.licences,
        gate=rig.replica.gate,
        clock=rig.clock,
    )


async def make_history(rig: Rig) -> None:
    """Leave every kind of record in the outbox."""
    account = await rig.register("owner-1", "agent-1")
    other = await rig.register("owner-2", "agent-2")
    for number in range(12):
        request = asked(rig, account, "agent-1")
        grant = await rig.granted(request)
        await rig.settle(settled(request, grant, cost=1_000 + number, sealed_answer=b"sealed"))
    for number in range(6):
        request = asked(rig, other, "agent-2", owner_id="owner-2")
        grant = await rig.granted(request)
        if number % 3 == 0:
            await rig.admission.release([released(request)])
        elif number % 3 == 1:
            await rig.settle(settled(request, grant, in_suspense=True, is_final=False))


async def ledger_bytes(dsn: str) -> dict[str, bytes]:
    """Return everything that the flush has written, as Postgres copies it out."""
    connection = await asyncpg.connect(dsn)
    try:
        found = {}
        for table in TABLES:
            columns = "(t.partition, t.generation, t.sequence)" if table == "partitions" else "t"
            rows = await connection.fetch(f"SELECT {columns}::text AS line FROM {table} AS t ORDER BY 1")
            found[table] = "\n".join(row["line"] for row in rows).encode()
        return found
    finally:
        await connection.close()


async def kill_at(rig: Rig, table: str) -> None:
    """Have Postgres end the session that writes a table, once, in the midst of its transaction."""
    for statement in (
        "CREATE TABLE died (once boolean PRIMARY KEY)",
        """
        CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (SELECT count(*) FROM died) = 0 THEN
                PERFORM pg_terminate_backend(pg_backend_pid());
            END IF;
            RETURN NULL;
        END $$
        """,
        f"CREATE TRIGGER die AFTER INSERT OR UPDATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION die()",
    ):
        await rig.fetch(statement)


async def test_a_round_that_dies_after_its_commit_is_repeated_without_effect(rig: Rig) -> None:
    """Trimming comes after the commit; what was committed is not read again, and would be passed over."""
    await make_history(rig)
    dying = flusher(rig, outbox=DyingOutbox(rig.replica.stores.outbox))
    with pytest.raises(Died):
        await dying.flush(await rig.replica.stores.licences.own_partitions(rig.replica.name, silent_after=SILENT))
    before = await ledger_bytes(rig.dsn)
    assert await rig.ledger_cost() == sum(1_000 + number for number in range(12))
    await rig.flush()
    assert await ledger_bytes(rig.dsn) == before


async def test_a_round_that_dies_before_it_writes_is_made_up_for(rig: Rig) -> None:
    """Nothing leaves Redis before Postgres has it."""
    await make_history(rig)
    with pytest.raises(Died):
        await flusher(rig, ledger=DyingLedger()).flush(
            await rig.replica.stores.licences.own_partitions(rig.replica.name, silent_after=SILENT)
        )
    assert await rig.ledger_cost() == 0
    await rig.flush()
    assert await rig.ledger_cost() == sum(1_000 + number for number in range(12))


@pytest.mark.parametrize("table", TABLES)
async def test_a_session_killed_in_the_midst_of_the_transaction_changes_nothing(rig: Rig, table: str) -> None:
    """Whichever table it was writing: all or nothing, and the next round makes it up to the same bytes."""
    await make_history(rig)
    empty = await ledger_bytes(rig.dsn)
    records = await rig.replica.stores.outbox.read(
        [Watermark(partition, 1, 0) for partition in range(256)], count=1_000
    )
    owned = await rig.replica.stores.licences.own_partitions(rig.replica.name, silent_after=SILENT)
    await kill_at(rig, table)
    with pytest.raises(DependencyUnavailableError):
        await flusher(rig).flush(owned)
    assert await ledger_bytes(rig.dsn) == empty
    assert len(records) == len(
        await rig.replica.stores.outbox.read([Watermark(each.partition, 1, 0) for each in owned], count=1_000)
    )
    await rig.fetch("INSERT INTO died VALUES (true)")
    await rig.flush()
    assert await rig.ledger_cost() == sum(1_000 + number for number in range(12))
    sums = await rig.fetch("SELECT sum(settled_cost_nano_usd)::bigint FROM usage_quarters")
    days = await rig.fetch("SELECT sum(settled_cost_nano_usd)::bigint FROM usage_days")
    assert [sums[0][0], days[0][0]] == [await rig.ledger_cost()] * 2


async def test_the_same_records_flushed_twice_are_counted_once(rig: Rig) -> None:
    """A re-sent round whose offset was lost adds neither entries nor sums."""
    await make_history(rig)
    outbox = DyingOutbox(rig.replica.stores.outbox)
    with pytest.raises(Died):
        await flusher(rig, outbox=outbox).flush(
            await rig.replica.stores.licences.own_partitions(rig.replica.name, silent_after=SILENT)
        )
    before = await ledger_bytes(rig.dsn)
    await rig.fetch("UPDATE partitions SET sequence = 0")
    await rig.flush()
    after = await ledger_bytes(rig.dsn)
    assert {name: after[name] for name in ("ledger_entries", "usage_quarters", "usage_days", "kept_answers")} == {
        name: before[name] for name in ("ledger_entries", "usage_quarters", "usage_days", "kept_answers")
    }


async def test_a_flusher_whose_partitions_were_taken_is_refused(rig: Rig) -> None:
    """The fence rises with the owner: an earlier one cannot write, whatever it still believes."""
    await make_history(rig)
    stores = rig.replica.stores
    owned = await stores.licences.own_partitions(rig.replica.name, silent_after=SILENT)
    assert len(owned) == 256
    async with open_rig(rig.dsn, rig.redis_url) as second:
        assert await second.replica.keeper.round()
        # The second is heard of, the first leaves what is too much, the second takes it.
        other = second.replica.stores.licences
        await other.own_partitions(second.replica.name, silent_after=SILENT)
        shares = [await stores.licences.own_partitions(rig.replica.name, silent_after=SILENT)]
        shares.append(await other.own_partitions(second.replica.name, silent_after=SILENT))
        assert [len(share) for share in shares] == [128, 128]
        with pytest.raises(FencedFlushError):
            await flusher(rig).flush(owned)
        assert await rig.ledger_cost() == 0
        await rig.flush()
        await second.flush()
        assert await rig.ledger_cost() == sum(1_000 + number for number in range(12))
        await second.replica.stores.licences.give_back(second.replica.name)
    # What a replica that has stopped owned is taken over at once.
    assert len(await stores.licences.own_partitions(rig.replica.name, silent_after=SILENT)) == 256


async def test_a_hold_that_spans_rounds_is_kept_and_closed(rig: Rig) -> None:
    """Postgres has the holds that are open, and drops them when they end."""
    account = await rig.register("owner-1", "agent-1")
    request = asked(rig, account, "agent-1", ttl=timedelta(minutes=1))
    grant = await rig.granted(request)
    await rig.flush()
    (hold,) = await rig.fetch("SELECT state, tokens, cost_nano_usd FROM holds")
    assert tuple(hold) == (1, 1_500, 5_400_000)
    await rig.settle(settled(request, grant))
    await rig.flush()
    assert await rig.fetch("SELECT * FROM holds") == []


async def test_the_partitions_of_a_dead_replica_are_taken_over_before_its_licence_ends(rig: Rig) -> None:
    """What it left in the outbox is flushed within seconds."""
    await make_history(rig)
    dead = rig.replica.stores.licences
    await dead.own_partitions(rig.replica.name, silent_after=SILENT)
    async with open_rig(rig.dsn, rig.redis_url) as second:
        assert await second.replica.keeper.round()
        licences = second.replica.stores.licences
        assert await licences.own_partitions(second.replica.name, silent_after=SILENT) == []
        await rig.fetch(
            "UPDATE flushers SET heartbeat_time = now() - interval '7 seconds' WHERE replica <> $1", second.replica.name
        )
        assert await licences.unexpired() == 2
        taken = await licences.own_partitions(second.replica.name, silent_after=SILENT)
        assert len(taken) == 256
        assert await second.flush() > 0
        assert await rig.ledger_cost() == sum(1_000 + number for number in range(12))

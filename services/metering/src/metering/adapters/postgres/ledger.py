"""The ledger: one transaction a flush, and what is read from it."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from typing_extensions import override

from metering.adapters.postgres import statements, usage
from metering.adapters.postgres.connection import Database
from metering.adapters.postgres.rows import entry_of, entry_row, hold_row, open_hold
from metering.domain.accounts import AccountKey
from metering.domain.enums import CallState, EntryKind, Window
from metering.domain.errors import FencedFlushError
from metering.domain.ledger import LedgerEntry, entry_id
from metering.domain.licences import Watermark
from metering.domain.limits import Limit
from metering.domain.outbox import FlushBatch, OpenHold, suspense_entry
from metering.domain.reservations import PriorAttempt, PriorOperation
from metering.domain.usage import UsageQuery, UsageSummary
from metering.domain.windows import from_minutes
from metering.ports import Ledger
from servicekit.ids import derived_uuid7

if TYPE_CHECKING:
    from metering.adapters.postgres.connection import Connection

_ANSWERS_KEPT: Final = timedelta(hours=24)
# Ids are at most 35 days old and 5 minutes ahead.
_PARTITIONS_BEHIND: Final = timedelta(days=62)
_PARTITIONS_AHEAD: Final = timedelta(days=62)
_TIME_BITS: Final = 48


class PostgresLedger(Ledger):
    """Entries, sums and holds."""

    def __init__(self, database: Database) -> None:
        """Use a database."""
        self._database = database

    @override
    async def commit(self, batch: FlushBatch) -> int:
        async with self._database.transaction() as connection:
            await _advance(connection, batch)
            entries = list(batch.entries)
            entries += await _post(connection, batch)
            await _change_holds(connection, batch)
            # Suspense first, so that its adjustment in the same batch finds it.
            plain = [entry for entry in entries if entry.kind is not EntryKind.ADJUSTMENT]
            inserted = await _insert(connection, [entry_row(entry) for entry in plain])
            adjustments = [entry for entry in entries if entry.kind is EntryKind.ADJUSTMENT]
            inserted += await _insert(connection, await _adjustment_rows(connection, adjustments))
            if batch.answers:
                await connection.executemany(
                    statements.KEEP_ANSWER, [(rid, answer, at + _ANSWERS_KEPT) for rid, answer, at in batch.answers]
                )
            return inserted

    @override
    async def watermarks(self) -> list[Watermark]:
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT partition, generation, sequence FROM partitions ORDER BY partition")
        return [Watermark(row["partition"], row["generation"], row["sequence"]) for row in rows]

    @override
    async def fold(self, account: AccountKey, limits: Sequence[tuple[Limit, int, int]]) -> list[int]:
        async with self._database.connection() as connection, connection.transaction(isolation="repeatable_read"):
            return [await _fold_one(connection, account, limit, start, end) for limit, start, end in limits]

    @override
    async def find_operation(self, request_id: str, account: AccountKey) -> PriorOperation | None:
        low, high = _id_range(request_id)
        async with self._database.connection() as connection, connection.transaction(isolation="repeatable_read"):
            entries = await connection.fetch(statements.OPERATION_ENTRIES, low, high, account, UUID(request_id))
            holds = await connection.fetch(statements.OPERATION_HOLDS, low, high, account)
        attempts = [_attempt_of_entry(row) for row in entries]
        open_holds = [open_hold(row) for row in holds]
        open_holds = [hold for hold in open_holds if hold.facts.request_id == request_id]
        return _prior(request_id, account, entries, attempts, open_holds)

    @override
    async def outcome(self, request_id: str, account: AccountKey, attempts: int) -> tuple[list[LedgerEntry], bytes]:
        low, high = _id_range(request_id)
        async with self._database.connection() as connection:
            rows = await connection.fetch(statements.OPERATION_ENTRIES, low, high, account, UUID(request_id))
            ids = [row["reservation_id"] for row in rows]
            answer = await connection.fetchval(
                "SELECT sealed_answer FROM kept_answers WHERE reservation_id = ANY($1) AND expire_time > now()"
                " ORDER BY expire_time DESC LIMIT 1",
                ids,
            )
        entries = [entry_of(row) for row in rows if row["kind"] != EntryKind.SUSPENSE]
        return entries[: max(attempts, 1)], answer or b""

    @override
    async def summarize(self, query: UsageQuery) -> UsageSummary:
        async with self._database.connection() as connection, connection.transaction(isolation="repeatable_read"):
            return await usage.summarize(connection, query)

    @override
    async def list_entries(self, query: UsageQuery, *, after: str, count: int) -> list[LedgerEntry]:
        async with self._database.connection() as connection:
            rows = await usage.list_entries(connection, query, after=after, count=count)
        return [entry_of(row) for row in rows]

    @override
    async def open_holds(self, partitions: Sequence[int]) -> list[OpenHold]:
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT * FROM holds WHERE partition = ANY($1)", list(partitions))
        return [open_hold(row) for row in rows]

    @override
    async def recent_operations(self, *, since: datetime) -> list[PriorOperation]:
        low = UUID(_floor_id(since))
        async with self._database.connection() as connection, connection.transaction(isolation="repeatable_read"):
            entries = await connection.fetch(statements.RECENT_ENTRIES, low)
            holds = await connection.fetch("SELECT * FROM holds WHERE reservation_id >= $1", low)
        grouped: dict[tuple[str, AccountKey], tuple[list[Any], list[OpenHold]]] = {}
        for row in entries:
            key = (str(row["request_id"]), AccountKey(row["account"]))
            grouped.setdefault(key, ([], []))[0].append(row)
        for row in holds:
            hold = open_hold(row)
            grouped.setdefault((hold.facts.request_id, hold.account), ([], []))[1].append(hold)
        found = [
            _prior(request_id, account, rows, [_attempt_of_entry(row) for row in rows], open_holds)
            for (request_id, account), (rows, open_holds) in grouped.items()
        ]
        return [each for each in found if each is not None]

    @override
    async def durable_times(self) -> dict[int, int]:
        async with self._database.connection() as connection:
            found = await connection.fetch("SELECT partition, seen_ms FROM partitions")
        return {row["partition"]: row["seen_ms"] for row in found}

    @override
    async def prepare_partitions(self, now: datetime) -> None:
        start = (now - _PARTITIONS_BEHIND).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        end = now + _PARTITIONS_AHEAD
        async with self._database.transaction() as connection:
            # Two replicas that start together would both try.
            await connection.execute("SELECT pg_advisory_xact_lock(hashtext('metering.ledger_partitions'))")
            while start < end:
                following = (start + timedelta(days=32)).replace(day=1)
                name = f"ledger_entries_{start:%Y_%m}"
                await connection.execute(
                    f"CREATE TABLE IF NOT EXISTS {name} PARTITION OF ledger_entries"
                    f" FOR VALUES FROM ('{_floor_id(start)}') TO ('{_floor_id(following)}')"
                )
                start = following

    @override
    async def forget_answers(self, now: datetime) -> None:
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM kept_answers WHERE expire_time < $1", now)


async def _advance(connection: "Connection", batch: FlushBatch) -> None:
    """Move the watermarks first: it locks them, and refuses a flusher whose partitions are another's by now."""
    steps = batch.advances
    moved = await connection.execute(
        statements.ADVANCE,
        [each.partition for each in steps],
        [each.generation for each in steps],
        [each.fence for each in steps],
        [each.from_sequence for each in steps],
        [each.to_sequence for each in steps],
        [each.seen_ms for each in steps],
    )
    if int(moved.split()[-1]) != len(steps):
        raise FencedFlushError(f"{len(steps)} partitions were to advance, and {moved.split()[-1]} could")


async def _post(connection: "Connection", batch: FlushBatch) -> list[LedgerEntry]:
    if not batch.posted:
        return []
    times = dict(batch.posted)
    found = await connection.fetch("DELETE FROM holds WHERE reservation_id = ANY($1) RETURNING *", list(times))
    return [suspense_entry(hold, times[hold.reservation_id]) for hold in map(open_hold, found)]


async def _change_holds(connection: "Connection", batch: FlushBatch) -> None:
    if batch.closed:
        await connection.execute("DELETE FROM holds WHERE reservation_id = ANY($1)", list(batch.closed))
    if batch.opened:
        await connection.executemany(statements.OPEN_HOLD, [hold_row(hold) for hold in batch.opened])
    if batch.suspended:
        await connection.execute(
            statements.SUSPEND_HOLDS, [rid for rid, _ in batch.suspended], [due for _, due in batch.suspended]
        )
    if batch.extended:
        await connection.execute(
            statements.EXTEND_HOLDS, [rid for rid, _ in batch.extended], [due for _, due in batch.extended]
        )


async def _insert(connection: "Connection", rows: list[tuple[Any, ...]]) -> int:
    if not rows:
        return 0
    columns = [list(column) for column in zip(*rows, strict=True)]
    inserted = await connection.fetchval(statements.INSERT_ENTRIES, *columns)
    return int(inserted)


async def _adjustment_rows(connection: "Connection", entries: list[LedgerEntry]) -> list[tuple[Any, ...]]:
    """Turn settlements of posted suspense into differences; without a posted entry they are settlements after all."""
    if not entries:
        return []
    suspense = {
        UUID(entry_id(str(entry.reservation_id), EntryKind.SUSPENSE)): entry.reservation_id for entry in entries
    }
    rows = await connection.fetch(
        "SELECT reservation_id, counted_tokens, cost_nano_usd FROM ledger_entries WHERE entry_id = ANY($1)",
        list(suspense),
    )
    posted = {row["reservation_id"]: row for row in rows}
    built = []
    for entry in entries:
        found = posted.get(entry.reservation_id)
        if found is None:
            settlement = UUID(entry_id(str(entry.reservation_id), EntryKind.SETTLEMENT))
            built.append(
                entry_row(msgspec.structs.replace(entry, entry_id=settlement, kind=EntryKind.SETTLEMENT, calls=1))
            )
        else:
            built.append(
                entry_row(entry, replaced_tokens=found["counted_tokens"], replaced_cost=found["cost_nano_usd"])
            )
    return built


def _attempt_of_entry(row: Any) -> PriorAttempt:
    state = CallState.POSTED if row["kind"] == EntryKind.SUSPENSE else CallState.SETTLED
    return PriorAttempt(
        attempt=row["attempt"],
        holder=str(row["holder"]),
        call_index=row["call_index"],
        state=state,
        # Of an adjustment the columns hold differences; the call's own figures are these.
        cost_nano_usd=row["cost_nano_usd"] + row["replaced_nano_usd"],
        tokens=row["input_tokens"] + row["output_tokens"],
    )


def _prior(
    request_id: str,
    account: AccountKey,
    entries: Sequence[Any],
    attempts: list[PriorAttempt],
    holds: Sequence[OpenHold],
) -> PriorOperation | None:
    if not attempts and not holds:
        return None
    for hold in holds:
        # While held, an operation record keeps the expiry in the place of the cost.
        figure = hold.due_ms if hold.state is CallState.HELD else hold.cost_nano_usd
        facts = hold.facts
        attempts.append(PriorAttempt(facts.attempt, facts.holder, facts.call_index, hold.state, figure, hold.tokens))
    # A settlement outranks the suspense that it corrects.
    attempts.sort(key=lambda each: (each.attempt, each.state is CallState.SETTLED))
    by_attempt = {each.attempt: each for each in attempts}
    body_hash = entries[0]["body_hash"] if entries else holds[0].facts.body_hash
    return PriorOperation(
        request_id=request_id,
        account=account,
        body_hash=body_hash,
        is_final=any(row["is_final"] for row in entries),
        attempts=tuple(by_attempt.values()),
    )


async def _fold_one(connection: "Connection", account: AccountKey, limit: Limit, start: int, end: int) -> int:
    column = {1: "operations", 2: "counted_tokens", 3: "counted_cost"}[limit.unit.value]
    arguments = [
        account,
        from_minutes(start),
        from_minutes(end),
        [payer.value for payer in limit.payers],
        int(limit.operation or 0),
        limit.scope.kind.value,
        limit.scope.scope_id,
    ]
    if limit.window is Window.MINUTE:
        statement = statements.FOLD_ENTRIES[column]
    elif limit.window is Window.MONTH:
        statement = statements.FOLD_MONTH[column]
    else:
        statement = statements.FOLD_QUARTERS[column]
    return int(await connection.fetchval(statement, *arguments) or 0)


def _id_range(request_id: str) -> tuple[UUID, UUID]:
    """Return the ids that carry the timestamp of a request, first and last."""
    milliseconds = int(UUID(request_id)) >> (128 - _TIME_BITS)
    low = milliseconds << (128 - _TIME_BITS)
    return UUID(int=low), UUID(int=low | ((1 << (128 - _TIME_BITS)) - 1))


def _floor_id(at: datetime) -> str:
    """Return the smallest UUID that is not before a time."""
    milliseconds = int(UUID(derived_uuid7(at.astimezone(UTC), b""))) >> (128 - _TIME_BITS)
    return str(UUID(int=milliseconds << (128 - _TIME_BITS)))

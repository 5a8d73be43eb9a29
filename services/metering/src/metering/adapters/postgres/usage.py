"""Summaries and pages of the ledger."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from metering.domain.accounts import partition_of
from metering.domain.enums import CallState
from metering.domain.usage import Dimension, UsageQuery, UsageRow, UsageSummary
from metering.domain.windows import from_ms, to_ms

if TYPE_CHECKING:
    from metering.adapters.postgres.connection import Connection

ROWS_MAX: Final = 10_000

_COLUMNS: Final[dict[Dimension, dict[str, str]]] = {
    Dimension.OPERATION: {"operation": "operation"},
    Dimension.AGENT: {"agent_id": "agent_id"},
    Dimension.MODEL: {"provider": "provider", "model": "model"},
    Dimension.KEY: {"key_id": "key_id"},
    Dimension.PAYER: {"payer": "payer"},
    Dimension.DAY: {"day": "to_char(start_time AT TIME ZONE $5, 'YYYY-MM-DD')"},
}
_ENTRIES_FILTER: Final = (
    "account = $1 AND ($2 = '' OR agent_id = $2) AND ($3::uuid IS NULL OR request_id = $3)"
    " AND ($4::timestamptz IS NULL OR reserve_time >= $4) AND ($5::timestamptz IS NULL OR reserve_time < $5)"
    " AND ($6::timestamptz IS NULL OR (reserve_time, entry_id) < ($6, $7::uuid))"
)
_ENTRIES_ORDER: Final = "ORDER BY reserve_time DESC, entry_id DESC LIMIT $8"
_ENTRIES: Final = f"SELECT * FROM ledger_entries WHERE {_ENTRIES_FILTER} {_ENTRIES_ORDER}"  # noqa: S608 - own text.
# A statement of its own, that says what its partial index asks for.
ENTRIES_OF_LEASE: Final = (
    f"SELECT * FROM ledger_entries WHERE lease_id = $9 AND lease_id <> '' AND {_ENTRIES_FILTER} {_ENTRIES_ORDER}"  # noqa: S608 - own text.
)
_FILTER: Final = "account = $1 AND start_time >= $2 AND start_time < $3 AND ($4 = '' OR agent_id = $4)"


async def summarize(connection: "Connection", query: UsageQuery) -> UsageSummary:
    """Sum an account's quarters, and what of it is held."""
    arguments: list[Any] = [query.account, query.start, query.end, query.agent_id]
    rows = await connection.fetch(_grouped(query.group_by), *arguments, *_zone(query))
    settled = sum(row["settled"] for row in rows)
    posted = sum(row["suspense"] for row in rows)
    if query.start is None or query.end is None:
        message = "a summary needs both bounds"
        raise ValueError(message)
    held = await connection.fetch(
        "SELECT state, sum(cost_nano_usd) AS cost FROM holds"
        " WHERE account = $1 AND reserve_ms >= $2 AND reserve_ms < $3 AND ($4 = '' OR agent_id = $4) GROUP BY state",
        query.account,
        to_ms(query.start),
        to_ms(query.end),
        query.agent_id,
    )
    open_cost = {row["state"]: int(row["cost"]) for row in held}
    seen_ms = await connection.fetchval(
        "SELECT seen_ms FROM partitions WHERE partition = $1", partition_of(query.account)
    )
    return UsageSummary(
        rows=tuple(_row(row) for row in rows[:ROWS_MAX]),
        settled_cost_nano_usd=int(settled),
        held_cost_nano_usd=open_cost.get(CallState.HELD, 0),
        suspense_cost_nano_usd=open_cost.get(CallState.SUSPENSE, 0) + int(posted),
        as_of=from_ms(seen_ms),
    )


async def list_entries(connection: "Connection", query: UsageQuery, *, after: str, count: int) -> Sequence[Any]:
    """Return rows of entries, newest reserve first."""
    position: tuple[Any, Any] = (None, None)
    if after:
        milliseconds, _, last = after.partition(".")
        position = (from_ms(int(milliseconds)), UUID(last))
    return await connection.fetch(
        ENTRIES_OF_LEASE if query.lease_id else _ENTRIES,
        query.account,
        query.agent_id,
        UUID(query.request_id) if query.request_id else None,
        query.start,
        query.end,
        *position,
        count,
        *([query.lease_id] if query.lease_id else []),
    )


def _grouped(dimensions: Sequence[Dimension]) -> str:
    columns = {name: expression for each in dimensions for name, expression in _COLUMNS[each].items()}
    selected = "".join(f"{expression} AS {name}, " for name, expression in columns.items())
    grouped = f"GROUP BY {', '.join(str(i + 1) for i in range(len(columns)))}" if columns else ""
    return (
        f"SELECT {selected} coalesce(sum(settled_calls), 0)::bigint AS calls,"  # noqa: S608 (columns of our own)
        " coalesce(sum(input_tokens), 0)::bigint AS input_tokens,"
        " coalesce(sum(output_tokens), 0)::bigint AS output_tokens,"
        " coalesce(sum(settled_cost_nano_usd), 0)::bigint AS settled,"
        " coalesce(sum(suspense_cost_nano_usd), 0)::bigint AS suspense"
        f" FROM usage_quarters WHERE {_FILTER} {grouped} ORDER BY settled DESC, calls DESC"
    )


def _zone(query: UsageQuery) -> list[str]:
    return [query.time_zone] if Dimension.DAY in query.group_by else []


def _row(row: Any) -> UsageRow:
    names = set(row.keys())
    given = {name: row[name] for columns in _COLUMNS.values() for name in columns if name in names}
    return UsageRow(
        **given,
        calls=row["calls"],
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        settled_cost_nano_usd=row["settled"],
        suspense_cost_nano_usd=row["suspense"],
    )

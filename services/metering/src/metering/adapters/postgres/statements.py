"""SQL of the ledger that is too long to stand where it is run."""

from typing import Final

ADVANCE: Final = """
UPDATE partitions AS p SET sequence = a.to_sequence, seen_ms = greatest(p.seen_ms, a.seen_ms)
FROM unnest($1::smallint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
    AS a (partition, generation, fence, from_sequence, to_sequence, seen_ms)
WHERE p.partition = a.partition AND p.generation = a.generation AND p.fence = a.fence AND p.sequence = a.from_sequence
"""

_ENTRY_COLUMNS: Final = (
    ("entry_id", "uuid"),
    ("kind", "smallint"),
    ("reservation_id", "uuid"),
    ("account", "text"),
    ("request_id", "uuid"),
    ("call_index", "integer"),
    ("holder", "uuid"),
    ("attempt", "integer"),
    ("leg", "smallint"),
    ("agent_id", "text"),
    ("owner_id", "text"),
    ("operation", "smallint"),
    ("subject_type", "text"),
    ("subject_id", "text"),
    ("payer", "smallint"),
    ("payer_rule", "text"),
    ("key_id", "text"),
    ("lease_id", "text"),
    ("provider", "text"),
    ("model", "text"),
    ("calls", "smallint"),
    ("input_tokens", "bigint"),
    ("output_tokens", "bigint"),
    ("counted_tokens", "bigint"),
    ("cost_nano_usd", "bigint"),
    ("replaced_nano_usd", "bigint"),
    ("overrun_nano_usd", "bigint"),
    ("usage_source", "smallint"),
    ("price_version", "text"),
    ("usage_document", "bytea"),
    ("latency_ms", "bigint"),
    ("is_final", "boolean"),
    ("body_hash", "bytea"),
    ("for_account", "text"),
    ("platform_purpose", "text"),
    ("reserve_time", "timestamptz"),
    ("settle_time", "timestamptz"),
)
_NAMES: Final = ", ".join(name for name, _ in _ENTRY_COLUMNS)
_ARRAYS: Final = ", ".join(f"${i}::{kind}[]" for i, (_, kind) in enumerate(_ENTRY_COLUMNS, start=1))

_SUM_KEY: Final = "account, start_time, agent_id, owner_id, operation, payer, provider, model, key_id"
_SUMS: Final = (
    "operations, settled_calls, input_tokens, output_tokens, counted_tokens, settled_cost_nano_usd,"
    " suspense_cost_nano_usd"
)
_SUM_NAMES: Final = _SUMS.replace("\n", " ").replace(" ", "").split(",")


def _roll_up(table: str, start_time: str) -> str:
    """Return an upsert of the inserted entries' sums. Kinds: 1 settlement, 2 suspense, 3 adjustment."""
    updates = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in _SUM_NAMES)
    return f"""
    INSERT INTO {table} ({_SUM_KEY}, {_SUMS})
    SELECT account, {start_time}, agent_id, owner_id, operation, payer, provider, model, key_id,
        sum(calls),
        count(*) FILTER (WHERE kind <> 2),
        coalesce(sum(input_tokens) FILTER (WHERE kind <> 2), 0),
        coalesce(sum(output_tokens) FILTER (WHERE kind <> 2), 0),
        sum(counted_tokens),
        coalesce(sum(cost_nano_usd + replaced_nano_usd) FILTER (WHERE kind <> 2), 0),
        coalesce(sum(cost_nano_usd) FILTER (WHERE kind = 2), 0) - sum(replaced_nano_usd)
    FROM inserted
    GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9
    ON CONFLICT ({_SUM_KEY}) DO UPDATE SET {updates}
    """  # noqa: S608 (names of our own tables and columns)


# A quarter hour bounds every zone's day; a sum is of what was really inserted, so that a repeated flush adds nothing.
INSERT_ENTRIES: Final = f"""
WITH inserted AS (
    INSERT INTO ledger_entries ({_NAMES})
    SELECT * FROM unnest({_ARRAYS})
    ON CONFLICT DO NOTHING
    RETURNING *
), quarters AS ({_roll_up("usage_quarters", "date_bin('15 minutes', reserve_time, timestamptz 'epoch')")}
), days AS ({_roll_up("usage_days", "date_trunc('day', reserve_time, 'UTC')")}
)
SELECT count(*) FROM inserted
"""  # noqa: S608 (names of our own tables and columns)

OPEN_HOLD: Final = """
INSERT INTO holds (reservation_id, account, partition, state, agent_id, owner_id, operation, payer, calls, tokens,
    cost_nano_usd, output_tokens, reserve_ms, due_ms, facts)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
ON CONFLICT (reservation_id) DO UPDATE SET state = excluded.state, calls = excluded.calls, tokens = excluded.tokens,
    cost_nano_usd = excluded.cost_nano_usd, output_tokens = excluded.output_tokens, due_ms = excluded.due_ms,
    facts = excluded.facts
"""

SUSPEND_HOLDS: Final = """
UPDATE holds AS h SET state = 4, due_ms = c.due_ms
FROM unnest($1::uuid[], $2::bigint[]) AS c (reservation_id, due_ms) WHERE h.reservation_id = c.reservation_id
"""

EXTEND_HOLDS: Final = """
UPDATE holds AS h SET due_ms = c.due_ms
FROM unnest($1::uuid[], $2::bigint[]) AS c (reservation_id, due_ms) WHERE h.reservation_id = c.reservation_id
"""

KEEP_ANSWER: Final = """
INSERT INTO kept_answers (reservation_id, sealed_answer, expire_time) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
"""

OPERATION_ENTRIES: Final = """
SELECT * FROM ledger_entries
WHERE entry_id BETWEEN $1 AND $2 AND account = $3 AND request_id = $4 ORDER BY attempt, kind
"""

OPERATION_HOLDS: Final = "SELECT * FROM holds WHERE reservation_id BETWEEN $1 AND $2 AND account = $3"

RECENT_ENTRIES: Final = "SELECT * FROM ledger_entries WHERE entry_id >= $1 ORDER BY attempt, kind"

_APPLIES: Final = """
account = $1 AND payer = ANY($4::smallint[]) AND ($5 = 0 OR operation = $5)
AND ($6 = 1 OR ($6 = 2 AND owner_id = $7) OR ($6 = 3 AND agent_id = $7))
"""
_QUARTER_SUMS: Final = {
    "operations": "operations",
    "counted_tokens": "counted_tokens",
    "counted_cost": "settled_cost_nano_usd + suspense_cost_nano_usd",
}
_ENTRY_SUMS: Final = {"operations": "calls", "counted_tokens": "counted_tokens", "counted_cost": "cost_nano_usd"}

FOLD_ENTRIES: Final = {
    name: f"SELECT sum({column}) FROM ledger_entries WHERE {_APPLIES} AND reserve_time >= $2 AND reserve_time < $3"  # noqa: S608 - fixed column names.
    for name, column in _ENTRY_SUMS.items()
}
FOLD_QUARTERS: Final = {
    name: f"SELECT sum({column}) FROM usage_quarters WHERE {_APPLIES} AND start_time >= $2 AND start_time < $3"  # noqa: S608 - fixed column names.
    for name, column in _QUARTER_SUMS.items()
}
# Whole UTC days from the days' sums, the ragged ends of a zone's month from the quarters'.
FOLD_MONTH: Final = {
    name: f"""
    WITH bounds AS (
        SELECT CASE WHEN date_trunc('day', $2, 'UTC') = $2 THEN $2
                    ELSE date_trunc('day', $2, 'UTC') + interval '24 hours' END AS first_day,
            date_trunc('day', $3::timestamptz, 'UTC') AS last_day
    )
    SELECT sum(amount) FROM (
        SELECT sum({column}) AS amount FROM usage_days, bounds
        WHERE {_APPLIES} AND start_time >= first_day AND start_time < last_day
        UNION ALL
        SELECT sum({column}) FROM usage_quarters, bounds
        WHERE {_APPLIES} AND start_time >= $2 AND start_time < first_day
        UNION ALL
        SELECT sum({column}) FROM usage_quarters, bounds
        WHERE {_APPLIES} AND start_time >= last_day AND start_time < $3
    ) AS parts
    """  # noqa: S608 (columns of our own)
    for name, column in _QUARTER_SUMS.items()
}

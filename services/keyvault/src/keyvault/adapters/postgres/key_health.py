"""What is planned for keys, on Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from keyvault.adapters.postgres.authority import key_row
from keyvault.domain.audit_log import EntryKind
from keyvault.domain.key_checks import KeyCheck
from keyvault.domain.provider_keys import KeyState
from keyvault.ports import ChangedKeys, Claim, KeyCheckStore, NoticeEntry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import asyncpg

    from keyvault.adapters.postgres.pool import Database
    from keyvault.domain.leaf_seals import LeafSealer

# One statement, one snapshot: what is not among the rows up to the head was superseded, and comes again further on.
_CHANGED: Final = """
    WITH head AS (SELECT last_index FROM audit_head), position AS (
        SELECT coalesce(max(audit_index), 0) AS audit_index FROM worker_positions WHERE worker = 'key_checks'
    )
    SELECT k.*, position.audit_index AS position, head.last_index
    FROM head CROSS JOIN position LEFT JOIN LATERAL (
        SELECT k.provider_key_id, k.audit_index, k.scope, k.owner_kind, k.owner_id, k.agent_id, k.provider, k.base_url,
               k.priority, k.state, k.key_version, k.record, k.mac_key_version, k.mac FROM agent_ai_keys k
        WHERE k.superseded_index IS NULL AND k.audit_index > position.audit_index ORDER BY k.audit_index LIMIT $1
    ) k ON true
"""
_CHECKS: Final = """
    SELECT provider_key_id, planned_index, provider, state, key_version, attempts, validate_time, next_check_time,
           expire_time, next_notice_time
    FROM agent_ai_key_checks WHERE provider_key_id = ANY($1)
"""
_PLAN: Final = """
    WITH moved AS (
        INSERT INTO worker_positions (worker, audit_index) VALUES ('key_checks', $2)
        ON CONFLICT (worker) DO UPDATE SET audit_index = $2 WHERE worker_positions.audit_index = $1
    ), ended AS (
        DELETE FROM agent_ai_key_checks WHERE provider_key_id = ANY($3)
    )
    INSERT INTO agent_ai_key_checks AS c (
        provider_key_id, planned_index, provider, state, key_version, attempts, validate_time, next_check_time,
        expire_time, next_notice_time)
    SELECT * FROM unnest(
        $4::text[], $5::bigint[], $6::text[], $7::smallint[], $8::bigint[], $9::integer[], $10::timestamptz[],
        $11::timestamptz[], $12::timestamptz[], $13::timestamptz[])
    ON CONFLICT (provider_key_id) DO UPDATE SET
        claimed_until = CASE
            WHEN (c.validate_time, c.key_version) IS NOT DISTINCT FROM (excluded.validate_time, excluded.key_version)
            THEN c.claimed_until
        END, validate_time = excluded.validate_time,
        planned_index = excluded.planned_index, provider = excluded.provider, state = excluded.state,
        key_version = excluded.key_version, attempts = excluded.attempts, next_check_time = excluded.next_check_time,
        expire_time = excluded.expire_time, next_notice_time = excluded.next_notice_time
    WHERE c.planned_index < excluded.planned_index
"""
_CLAIM: Final = "SELECT claim_key_checks($1, $2, $3, $4, $5, $6, $7, $8) AS provider_key_id"
_PUT_OFF: Final = """
    UPDATE agent_ai_key_checks SET claimed_until = NULL, next_check_time = $2 WHERE provider_key_id = ANY($1)
"""
_NEXT_DUE: Final = """
    SELECT min(due.next_check_time) FROM unnest($1::text[]) AS asked (provider) CROSS JOIN LATERAL (
        SELECT next_check_time FROM agent_ai_key_checks
        WHERE provider = asked.provider AND next_check_time IS NOT NULL ORDER BY next_check_time LIMIT 1
    ) due
"""
_EXPIRED: Final = """
    SELECT provider_key_id FROM agent_ai_key_checks WHERE expire_time <= $1 ORDER BY expire_time LIMIT $2
"""
_FORGET_EXPIRY: Final = """
    UPDATE agent_ai_key_checks SET expire_time = NULL, next_notice_time = NULL
    WHERE provider_key_id = ANY($1) AND expire_time <= $2
"""
_NOTICES: Final = """
    SELECT provider_key_id FROM agent_ai_key_checks WHERE next_notice_time <= $1 ORDER BY next_notice_time LIMIT $2
"""
_FORGET_NOTICES: Final = """
    UPDATE agent_ai_key_checks SET next_notice_time = NULL WHERE provider_key_id = ANY($1) AND next_notice_time <= $2
"""
_APPEND_NOTICES: Final = "SELECT append_expiry_notices($1, $2, $3, $4, $5, $6, $7) AS appended"


class PostgresKeyChecks(KeyCheckStore):
    """The plans of one database."""

    def __init__(self, database: Database, sealer: LeafSealer) -> None:
        """Work on `database`; `sealer` makes the leaves of the log."""
        self._database = database
        self._seal = sealer.seal

    @override
    async def read_changed(self, limit: int) -> ChangedKeys:
        rows = await self._database.fetch(_CHANGED, limit)
        changed = tuple(key_row(row) for row in rows if row["provider_key_id"] is not None)
        is_complete = len(changed) < limit
        return ChangedKeys(
            position=rows[0]["position"],
            next_position=rows[0]["last_index"] if is_complete else changed[-1].seal.audit_index,
            rows=changed,
            is_complete=is_complete,
        )

    @override
    async def checks_of(self, provider_key_ids: Sequence[str]) -> list[KeyCheck]:
        return [_check(row) for row in await self._database.fetch(_CHECKS, list(provider_key_ids))]

    @override
    async def plan(self, checks: Sequence[KeyCheck], ended: Sequence[str], changed: ChangedKeys) -> None:
        columns: list[list[Any]] = [
            [check.provider_key_id for check in checks],
            [check.planned_index for check in checks],
            [check.provider for check in checks],
            [int(check.state) for check in checks],
            [check.key_version for check in checks],
            [check.attempts for check in checks],
            [check.validate_time for check in checks],
            [check.next_check_time for check in checks],
            [check.expire_time for check in checks],
            [check.next_notice_time for check in checks],
        ]
        await self._database.execute(_PLAN, changed.position, changed.next_position, list(ended), *columns)

    @override
    async def claim(self, claim: Claim) -> list[str]:
        rows = await self._database.fetch(
            _CLAIM,
            claim.now,
            list(claim.providers),
            claim.claims_max,
            claim.holder,
            claim.life,
            claim.window,
            claim.provider_max,
            claim.total_max,
        )
        return [row["provider_key_id"] for row in rows]

    @override
    async def put_off(self, provider_key_ids: Sequence[str], until: datetime) -> None:
        await self._database.execute(_PUT_OFF, list(provider_key_ids), until)

    @override
    async def next_due_time(self, providers: Sequence[str]) -> datetime | None:
        time: datetime | None = await self._database.fetch_value(_NEXT_DUE, list(providers))
        return time

    @override
    async def find_expired(self, now: datetime, limit: int) -> list[str]:
        return [row["provider_key_id"] for row in await self._database.fetch(_EXPIRED, now, limit)]

    @override
    async def forget_expiry(self, provider_key_ids: Sequence[str], now: datetime) -> None:
        await self._database.execute(_FORGET_EXPIRY, list(provider_key_ids), now)

    @override
    async def find_notices(self, now: datetime, limit: int) -> list[str]:
        return [row["provider_key_id"] for row in await self._database.fetch(_NOTICES, now, limit)]

    @override
    async def forget_notices(self, provider_key_ids: Sequence[str], now: datetime) -> None:
        await self._database.execute(_FORGET_NOTICES, list(provider_key_ids), now)

    @override
    async def append_notices(self, notices: Sequence[NoticeEntry]) -> int:
        rows = await self._database.append(
            _APPEND_NOTICES,
            [each.entry.provider_key_id for each in notices],
            [each.key_index for each in notices],
            [each.notice.expire_time for each in notices],
            [int(each.notice.threshold.total_seconds()) for each in notices],
            [each.notice.next_notice_time for each in notices],
            int(EntryKind.KEY_EXPIRING),
            [self._seal(each.entry) for each in notices],
        )
        return int(rows[0]["appended"])


def _check(row: asyncpg.Record) -> KeyCheck:
    return KeyCheck(
        provider_key_id=row["provider_key_id"],
        planned_index=row["planned_index"],
        provider=row["provider"],
        state=KeyState(row["state"]),
        key_version=row["key_version"],
        attempts=row["attempts"],
        validate_time=row["validate_time"],
        next_check_time=row["next_check_time"],
        expire_time=row["expire_time"],
        next_notice_time=row["next_notice_time"],
    )

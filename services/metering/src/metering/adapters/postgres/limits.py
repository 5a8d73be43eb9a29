"""Limits in Postgres: what was set, under which version of the account."""

from typing import TYPE_CHECKING, Any

import msgspec
from typing_extensions import override

from metering.adapters.postgres.connection import Database
from metering.domain.accounts import AccountKey
from metering.domain.enums import Operation, Payer, ScopeKind, Unit, Window
from metering.domain.errors import AccountNotFoundError, EtagMismatchError, LimitNotFoundError
from metering.domain.limits import LIMITS_PER_SCOPE_MAX, Limit, Scope
from metering.ports import Limits
from servicekit.errors import FieldViolation, InvalidArgumentError

if TYPE_CHECKING:
    from metering.adapters.postgres.connection import Connection


class PostgresLimits(Limits):
    """Every change is a new config version of the account."""

    def __init__(self, database: Database) -> None:
        """Use a database."""
        self._database = database

    @override
    async def list_limits(self, account: AccountKey) -> list[Limit]:
        async with self._database.connection() as connection:
            rows = await connection.fetch("SELECT * FROM limits WHERE account = $1 ORDER BY limit_id", account)
        return [_limit(row) for row in rows]

    @override
    async def set_limit(self, limit: Limit, *, etag: str) -> Limit:
        async with self._database.transaction() as connection:
            version = await _next_version(connection, limit.account)
            known = await _find(connection, limit.account, limit.limit_id)
            if etag and (known is None or known.etag != etag):
                raise EtagMismatchError("The limit changed since it was read; read it again.")
            if known is not None:
                if (known.amount, known.is_hard) == (limit.amount, limit.is_hard):
                    return known
                if known.is_default and not limit.is_hard:
                    raise _default_refused(
                        "limit.enforcement", "the default daily cost cap can be raised, not softened"
                    )
                limit = msgspec.structs.replace(limit, is_default=known.is_default)
            else:
                await _ensure_room(connection, limit)
            await connection.execute(
                "UPDATE accounts SET config_version = $2 WHERE account = $1", limit.account, version
            )
            return await write_limit(connection, limit, version=version)

    @override
    async def remove_limit(self, account: AccountKey, limit_id: str) -> int:
        async with self._database.transaction() as connection:
            version = await _next_version(connection, account)
            known = await _find(connection, account, limit_id)
            if known is None:
                raise LimitNotFoundError("There is no such limit.", limit_id=limit_id)
            if known.is_default:
                raise _default_refused("limit_id", "the default daily cost cap can be raised, not removed")
            await connection.execute("DELETE FROM limits WHERE account = $1 AND limit_id = $2", account, limit_id)
            await connection.execute("UPDATE accounts SET config_version = $2 WHERE account = $1", account, version)
            return version

    @override
    async def unapplied(self, *, count: int) -> list[AccountKey]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT account FROM accounts WHERE applied_version > 0 AND applied_version < config_version LIMIT $1",
                count,
            )
        return [AccountKey(row["account"]) for row in rows]

    @override
    async def mark_applied(self, account: AccountKey, version: int) -> None:
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE accounts SET applied_version = $2 WHERE account = $1 AND applied_version < $2",
                account,
                version,
            )


def _default_refused(field: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        violations=[FieldViolation(field=field, reason="DEFAULT_LIMIT", description=description)]
    )


async def write_limit(connection: "Connection", limit: Limit, *, version: int) -> Limit:
    """Insert a limit into the next slot of its account, or change it in its own."""
    row = await connection.fetchrow(
        """
        WITH slot AS (
            UPDATE accounts SET next_slot = next_slot + 1
            WHERE account = $1 AND NOT EXISTS (SELECT FROM limits WHERE account = $1 AND limit_id = $2)
            RETURNING next_slot - 1 AS slot
        )
        INSERT INTO limits (account, limit_id, slot, scope_kind, scope_id, operation, unit, time_window, payers, amount,
            is_hard, is_default, is_utc, version)
        VALUES ($1, $2, coalesce((SELECT slot FROM slot), 0), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        ON CONFLICT (account, limit_id) DO UPDATE
            SET amount = excluded.amount, is_hard = excluded.is_hard, version = excluded.version, update_time = now()
        RETURNING *
        """,
        limit.account,
        limit.limit_id,
        limit.scope.kind.value,
        limit.scope.scope_id,
        int(limit.operation or 0),
        limit.unit.value,
        limit.window.value,
        sorted(payer.value for payer in limit.payers),
        limit.amount,
        limit.is_hard,
        limit.is_default,
        limit.is_utc,
        version,
    )
    return _limit(row)


async def _next_version(connection: "Connection", account: AccountKey) -> int:
    version = await connection.fetchval("SELECT config_version FROM accounts WHERE account = $1 FOR UPDATE", account)
    if version is None:
        raise AccountNotFoundError("There is no such account; register an agent under it first.")
    return int(version) + 1


async def _find(connection: "Connection", account: AccountKey, limit_id: str) -> Limit | None:
    row = await connection.fetchrow("SELECT * FROM limits WHERE account = $1 AND limit_id = $2", account, limit_id)
    return None if row is None else _limit(row)


async def _ensure_room(connection: "Connection", limit: Limit) -> None:
    count = await connection.fetchval(
        "SELECT count(*) FROM limits WHERE account = $1 AND scope_kind = $2 AND scope_id = $3",
        limit.account,
        limit.scope.kind.value,
        limit.scope.scope_id,
    )
    if count >= LIMITS_PER_SCOPE_MAX:
        raise InvalidArgumentError(
            violations=[
                FieldViolation(
                    field="limit.scope",
                    reason="TOO_MANY_LIMITS",
                    description=f"has {LIMITS_PER_SCOPE_MAX} limits already, which is the most; remove one first",
                )
            ]
        )


def _limit(row: Any) -> Limit:
    return Limit(
        account=AccountKey(row["account"]),
        scope=Scope(ScopeKind(row["scope_kind"]), row["scope_id"]),
        operation=Operation(row["operation"]) if row["operation"] else None,
        unit=Unit(row["unit"]),
        window=Window(row["time_window"]),
        payers=frozenset(Payer(payer) for payer in row["payers"]),
        amount=row["amount"],
        is_hard=row["is_hard"],
        is_default=row["is_default"],
        is_utc=row["is_utc"],
        slot=row["slot"],
        version=row["version"],
        update_time=row["update_time"],
    )

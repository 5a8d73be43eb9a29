"""Accounts, agents, plans and policy in Postgres; answers of mutations by request id."""

from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from typing_extensions import override

from metering.adapters.postgres.connection import Database
from metering.adapters.postgres.limits import write_limit
from metering.domain.accounts import Account, AccountKey, Agent
from metering.domain.errors import AgentAlreadyRegisteredError, PlanLimitReachedError
from metering.domain.limits import Limit
from metering.domain.plans import Plan
from metering.domain.policy import Phase, Policy
from metering.ports import Directory, Requests

if TYPE_CHECKING:
    from metering.adapters.postgres.connection import Connection


class PostgresDirectory(Directory):
    """Reads and writes rows; caches nothing."""

    def __init__(self, database: Database, *, default_plan: str) -> None:
        """Use a database; new accounts get the default plan."""
        self._database = database
        self._default_plan = default_plan

    @override
    async def find_agent(self, agent_id: str) -> Agent | None:
        async with self._database.connection() as connection:
            return await _find_agent(connection, agent_id)

    @override
    async def list_agents(self, *, owner_id: str, after: str, count: int) -> list[Agent]:
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                "SELECT * FROM agents WHERE owner_id = $1 AND agent_id > $2 ORDER BY agent_id LIMIT $3",
                owner_id,
                after,
                count,
            )
        return [_agent(row) for row in rows]

    @override
    async def register_agent(self, agent: Agent, *, cap: Limit | None, time_zone: str) -> None:
        async with self._database.transaction() as connection:
            inserted = await connection.fetchval(
                "INSERT INTO accounts (account, plan, time_zone, config_version) VALUES ($1, $2, $3, 1)"
                " ON CONFLICT DO NOTHING RETURNING account",
                agent.account,
                self._default_plan,
                time_zone,
            )
            if inserted is not None and cap is not None:
                await write_limit(connection, cap, version=1)
            # The row's lock makes counting and inserting one step.
            account = await connection.fetchrow(
                "SELECT plan, agents_max FROM accounts JOIN plans ON plans.name = plan WHERE account = $1"
                " FOR UPDATE OF accounts",
                agent.account,
            )
            known = await _find_agent(connection, agent.agent_id)
            if known is not None:
                _ensure_same(known, agent)
                return
            await _ensure_room(connection, agent.account, account)
            await connection.execute(
                "INSERT INTO agents (agent_id, owner_id, account, binding_index, register_time)"
                " VALUES ($1, $2, $3, $4, $5)",
                agent.agent_id,
                agent.owner_id,
                agent.account,
                agent.binding_index,
                agent.register_time,
            )

    @override
    async def find_account(self, account: AccountKey) -> Account | None:
        async with self._database.connection() as connection:
            row = await connection.fetchrow("SELECT * FROM accounts WHERE account = $1", account)
        return None if row is None else account_of(row)

    @override
    async def count_agents(self, account: AccountKey) -> int:
        async with self._database.connection() as connection:
            return int(await connection.fetchval("SELECT count(*) FROM agents WHERE account = $1", account))

    @override
    async def is_owner_of(self, account: AccountKey, owner_id: str) -> bool:
        async with self._database.connection() as connection:
            return bool(
                await connection.fetchval(
                    "SELECT EXISTS (SELECT FROM agents WHERE account = $1 AND owner_id = $2)", account, owner_id
                )
            )

    @override
    async def find_plan(self, name: str) -> Plan:
        async with self._database.connection() as connection:
            row = await connection.fetchrow("SELECT * FROM plans WHERE name = $1", name)
        if row is None:
            message = f"there is no plan {name}"
            raise LookupError(message)
        return Plan(row["name"], row["priority"], tuple(row["entitlements"]), row["agents_max"])

    @override
    async def policy(self) -> Policy:
        async with self._database.connection() as connection:
            row = await connection.fetchrow("SELECT * FROM policy")
        if row is None:
            return Policy()
        return Policy(
            phase=Phase(row["phase"]),
            pays_embedding_fallback=row["pays_embedding_fallback"],
            pays_evidence=row["pays_evidence"],
            pays_safety_escalation=row["pays_safety_escalation"],
            pays_caller_requests=row["pays_caller_requests"],
        )


class PostgresRequests(Requests):
    """What was answered, by request id."""

    def __init__(self, database: Database) -> None:
        """Use a database."""
        self._database = database

    @override
    async def claim(self, rpc: str, scope: str, request_id: str, *, body_hash: bytes) -> tuple[bytes, bytes | None]:
        async with self._database.connection() as connection:
            # The update changes nothing: by it also a row that was there already comes back.
            (row,) = await connection.fetch(
                "INSERT INTO requests AS kept (rpc, scope, request_id, body_hash) VALUES ($1, $2, $3, $4)"
                " ON CONFLICT (rpc, scope, request_id) DO UPDATE SET body_hash = kept.body_hash"
                " RETURNING body_hash, answer",
                rpc,
                scope,
                UUID(request_id),
                body_hash,
            )
        return row["body_hash"], row["answer"]

    @override
    async def keep(self, rpc: str, scope: str, request_id: str, *, answer: bytes) -> None:
        async with self._database.connection() as connection:
            await connection.execute(
                "UPDATE requests SET answer = $4 WHERE rpc = $1 AND scope = $2 AND request_id = $3 AND answer IS NULL",
                rpc,
                scope,
                UUID(request_id),
                answer,
            )

    async def forget(self, before: datetime) -> None:
        """Delete answers whose request ids would be refused as too old by now."""
        async with self._database.connection() as connection:
            await connection.execute("DELETE FROM requests WHERE create_time < $1", before)


def account_of(row: Any) -> Account:
    """Return the account of a row."""
    return Account(
        account=AccountKey(row["account"]),
        plan=row["plan"],
        time_zone=row["time_zone"],
        config_version=row["config_version"],
        create_time=row["create_time"],
    )


async def _find_agent(connection: "Connection", agent_id: str) -> Agent | None:
    row = await connection.fetchrow("SELECT * FROM agents WHERE agent_id = $1", agent_id)
    return None if row is None else _agent(row)


def _agent(row: Any) -> Agent:
    return Agent(
        agent_id=row["agent_id"],
        owner_id=row["owner_id"],
        account=AccountKey(row["account"]),
        binding_index=row["binding_index"],
        register_time=row["register_time"],
    )


def _ensure_same(known: Agent, asked: Agent) -> None:
    if (known.owner_id, known.account) != (asked.owner_id, asked.account):
        raise AgentAlreadyRegisteredError(
            "The agent is registered under another owner or account; transfer it instead.", agent_id=asked.agent_id
        )


async def _ensure_room(connection: "Connection", account: AccountKey, terms: Any) -> None:
    if terms["agents_max"] is None:
        return
    count = await connection.fetchval("SELECT count(*) FROM agents WHERE account = $1", account)
    if count >= terms["agents_max"]:
        raise PlanLimitReachedError(
            f"The {terms['plan']} plan allows {terms['agents_max']} agents; choose a larger plan.",
            plan=terms["plan"],
            limit=terms["agents_max"],
        )

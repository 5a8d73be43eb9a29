"""The calls that were made on a lease of a key: found by an index, paged, and by nobody but the account's own."""

from collections.abc import Sequence

import asyncpg
import msgspec
import pytest

from metering.adapters.postgres.usage import ENTRIES_OF_LEASE
from metering.domain.accounts import AccountKey
from metering.domain.errors import AccountNotFoundError
from metering.domain.ledger import LedgerEntry
from metering.domain.principals import Principal
from metering.domain.usage import UsageQuery
from metering.domain.windows import to_ms
from metering.usecases.reserve_batch import ReserveRequest
from services.metering.tests.rig import Rig, asked, settled

ROWS = 5


async def settle_on(rig: Rig, account: AccountKey, lease_id: str, count: int, *, owner_id: str, agent: str) -> set[str]:
    """Make calls on a lease and return their request ids."""
    made = set()
    for _ in range(count):
        request = asked(rig, account, agent, owner_id=owner_id)
        facts = msgspec.structs.replace(request.command.facts, lease_id=lease_id)
        request = ReserveRequest(msgspec.structs.replace(request.command, facts=facts), None)
        await rig.settle(settled(request, await rig.granted(request)))
        made.add(request.command.call.request_id)
    return made


def query(account: AccountKey, lease_id: str, **more: str) -> UsageQuery:
    """Return what asks for a lease's calls."""
    return UsageQuery(account=account, start=None, end=None, lease_id=lease_id, **more)  # type: ignore[arg-type]  # further filters are texts


def requests_of(entries: Sequence[LedgerEntry]) -> list[str]:
    """Return the request ids of entries."""
    return [entry.facts.request_id for entry in entries]


async def test_the_calls_of_a_lease_are_found_page_by_page_by_their_account_only(rig: Rig) -> None:
    """Another lease's calls, another account's on the same lease, and another filter's token are kept apart."""
    account, stranger = await rig.register("owner-1", "agent-1"), await rig.register("owner-2", "agent-2")
    leases = [rig.new_id(), rig.new_id()]
    made = await settle_on(rig, account, leases[0], ROWS, owner_id="owner-1", agent="agent-1")
    others = await settle_on(rig, account, leases[1], 2, owner_id="owner-1", agent="agent-1")
    foreign = await settle_on(rig, stranger, leases[0], 2, owner_id="owner-2", agent="agent-2")
    await rig.flush()
    owner = Principal(owner_id="owner-1")
    first = await rig.usage.entries(query(account, leases[0]), owner, after="", count=3)
    after = f"{to_ms(first[-1].reserve_time)}.{first[-1].entry_id}"
    rest = await rig.usage.entries(query(account, leases[0]), owner, after=after, count=3)
    assert (len(first), len(rest)) == (3, ROWS - 3)
    assert set(requests_of([*first, *rest])) == made
    assert set(requests_of(await rig.usage.entries(query(account, leases[1]), owner, after="", count=9))) == others
    assert await rig.usage.entries(query(account, leases[0], agent_id="agent-3"), owner, after="", count=9) == []
    assert await rig.usage.entries(query(account, rig.new_id()), owner, after="", count=9) == []
    # Without the filter all are there, so that it is the filter which keeps them apart.
    everything = await rig.usage.entries(UsageQuery(account=account, start=None, end=None), owner, after="", count=99)
    assert set(requests_of(everything)) == made | others
    with pytest.raises(AccountNotFoundError):
        await rig.usage.entries(query(stranger, leases[0]), owner, after="", count=9)
    of_stranger = await rig.usage.entries(query(stranger, leases[0]), Principal(owner_id="owner-2"), after="", count=9)
    assert set(requests_of(of_stranger)) == foreign


async def test_a_lease_is_found_by_its_index(rig: Rig) -> None:
    """However many calls an account has made; also by a prepared statement, whose plan knows no lease."""
    account = await rig.register("owner-1", "agent-1")
    await settle_on(rig, account, rig.new_id(), 1, owner_id="owner-1", agent="agent-1")
    await rig.flush()
    columns = await rig.fetch(
        "SELECT column_name AS name FROM information_schema.columns WHERE table_name = 'ledger_entries'"
        " ORDER BY ordinal_position"
    )
    own = {"entry_id": "overlay(entry_id::text PLACING lpad(n::text, 12, '0') FROM 25)::uuid", "lease_id": "'l-' || n"}
    values = ", ".join(own.get(column["name"], column["name"]) for column in columns)
    await rig.fetch(f"INSERT INTO ledger_entries SELECT {values} FROM ledger_entries, generate_series(1, 5000) AS n")
    await rig.fetch("ANALYZE ledger_entries")
    plan = await plan_of(rig, ENTRIES_OF_LEASE, account)
    # The months without entries are read as they are, which costs nothing.
    assert "lease_id_idx" in plan
    # The control: a statement that does not say what the partial index asks for has to read the whole account.
    assert "lease_id_idx" not in await plan_of(rig, ENTRIES_OF_LEASE.replace(" AND lease_id <> ''", ""), account)


async def plan_of(rig: Rig, statement: str, account: AccountKey) -> str:
    """Return how a prepared statement is run when its plan is made before its arguments are known."""
    connection = await asyncpg.connect(rig.dsn)
    try:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE entries AS {statement}")
        arguments = f"'{account}', '', NULL, NULL, NULL, NULL, NULL, 50, 'l-7'"
        rows = await connection.fetch(f"EXPLAIN (COSTS OFF) EXECUTE entries ({arguments})")
    finally:
        await connection.close()
    return "\n".join(row[0] for row in rows)

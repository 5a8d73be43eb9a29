"""Leases are used only while a revocation would be heard of, and never past one."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from byok.keyvault.v1.lease_service_pb2 import AuthorityChange
from catalogue.models import Operation
from router.adapters.authority import Authority
from router.adapters.lease_cache import CacheLimits, LeaseCache
from router.domain.leases import Account, AccountKind, Lease, LeaseQuery, NoKey, Outcome
from router.domain.refusals import LeaseEndedError, SuiteUnavailableError
from router.ports import ValidationReport
from services.router.tests.kit import Workbench

if TYPE_CHECKING:
    from testkit.fake_clock import FakeClock

BOUND = timedelta(seconds=3)
QUERY = LeaseQuery(operation=Operation.GUARDRAIL_EVALUATION, agent_id="agent-1")


class Vault:
    """A KeyVault that answers what a test prepares, and counts what it is asked."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench
        self.asked: list[LeaseQuery] = []
        self.changes: dict[str, object] = {}
        self.answer: NoKey | None = None
        self.gate: asyncio.Event | None = None

    async def acquire(self, query: LeaseQuery) -> Lease | NoKey:
        self.asked.append(query)
        if self.gate is not None:
            await self.gate.wait()
        if self.answer is not None:
            return replace(self.answer, agent_id=query.agent_id)
        lease = replace(self.bench.lease(), agent_id=query.agent_id)
        return replace(lease, **self.changes)  # type: ignore[arg-type]  # names of fields, by a test

    def report(self, outcome: Outcome) -> None:
        raise AssertionError

    async def report_validation(self, report: ValidationReport) -> bytes:
        raise AssertionError


class Custody:
    """A cache, its authority and its vault, on one clock."""

    def __init__(self) -> None:
        self.bench = Workbench()
        self.clock: FakeClock = self.bench.clock
        self.authority = Authority(self.clock)
        self.vault = Vault(self.bench)
        limits = CacheLimits(
            entries_max=3, contact_wait=timedelta(0), sweep_interval=timedelta(seconds=1), late_leases_max=3
        )
        self.cache = LeaseCache(self.vault, self.authority, limits=limits, clock=self.clock)  # type: ignore[arg-type]  # a fake client
        self.authority.begin(index=10, partition_bound=BOUND)
        self.echo()

    def echo(self) -> None:
        """Prove contact as of now."""
        self.authority.note_echo(self.clock.monotonic(), index=10)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass in contact."""
        for _ in range(int(seconds)):
            await self.clock.advance(timedelta(seconds=1))
            self.echo()


@pytest.fixture
def custody() -> Custody:
    """Return a custody in contact."""
    return Custody()


async def test_a_lease_is_kept_for_its_life(custody: Custody) -> None:
    """The second call asks nobody; after the life, KeyVault is asked again."""
    first = await custody.cache.acquire(QUERY)
    assert await custody.cache.acquire(QUERY) is first
    await custody.pass_time(59)
    assert await custody.cache.acquire(QUERY) is first
    await custody.pass_time(2)
    assert await custody.cache.acquire(QUERY) is not first
    assert len(custody.vault.asked) == 2


async def test_without_contact_no_lease_is_used(custody: Custody) -> None:
    """After the partition bound neither a kept nor a fresh lease may be used; with contact, the kept one may again."""
    lease = await custody.cache.acquire(QUERY)
    assert isinstance(lease, Lease)
    await custody.clock.advance(BOUND - timedelta(milliseconds=1))
    custody.cache.ensure_usable(lease)
    await custody.clock.advance(timedelta(milliseconds=2))
    with pytest.raises(LeaseEndedError):
        custody.cache.ensure_usable(lease)
    with pytest.raises(SuiteUnavailableError):
        await custody.cache.acquire(QUERY)
    custody.echo()
    custody.cache.ensure_usable(lease)


async def test_there_is_no_contact_before_the_first_echo(custody: Custody) -> None:
    """A watch that has begun has proved nothing yet."""
    fresh = Authority(custody.clock)
    assert not fresh.is_in_contact
    fresh.begin(index=1, partition_bound=BOUND)
    assert not fresh.is_in_contact
    fresh.note_echo(custody.clock.monotonic(), index=1)
    assert fresh.is_in_contact


async def test_an_echo_counts_from_its_ping(custody: Custody) -> None:
    """A delayed echo proves no more than what was known when its ping left."""
    ping_time = custody.clock.monotonic()
    await custody.clock.advance(timedelta(seconds=2))
    custody.authority.note_echo(ping_time, index=10)
    await custody.clock.advance(timedelta(seconds=1.1))
    assert not custody.authority.is_in_contact


@pytest.mark.parametrize(
    ("change", "ends"),
    [
        (AuthorityChange(authority_index=11, key_id="key-1"), True),
        (AuthorityChange(authority_index=11, key_id="key-2"), False),
        (AuthorityChange(authority_index=11, agent_id="agent-1"), True),
        (AuthorityChange(authority_index=11, agent_id="agent-2"), False),
        (AuthorityChange(authority_index=11, owner_id="owner-1"), True),
        (AuthorityChange(authority_index=11, owner_id="owner-2"), False),
        (AuthorityChange(authority_index=11, organization_id="org-1"), False),
        (AuthorityChange(authority_index=11, platform=True), False),
        (AuthorityChange(authority_index=11), True),
        (AuthorityChange(authority_index=10, key_id="key-1"), False),
    ],
)
async def test_a_change_ends_what_it_touches_and_nothing_else(
    custody: Custody, change: AuthorityChange, *, ends: bool
) -> None:
    """Key, agent and owner are matched; a change of a kind unknown here ends everything; an older one ends nothing."""
    lease = await custody.cache.acquire(QUERY)
    assert isinstance(lease, Lease)
    custody.authority.note_change(change)
    if ends:
        with pytest.raises(LeaseEndedError):
            custody.cache.ensure_usable(lease)
        custody.vault.changes = {"authority_index": 12}
        assert await custody.cache.acquire(QUERY) is not lease
    else:
        custody.cache.ensure_usable(lease)
        assert await custody.cache.acquire(QUERY) is lease


ORGANIZATION = Account(AccountKind.ORGANIZATION, "org-1")


@pytest.mark.parametrize(
    ("changes", "change", "ends"),
    [
        ({"account": ORGANIZATION}, AuthorityChange(authority_index=11, organization_id="org-1"), True),
        ({"owned_by": ORGANIZATION}, AuthorityChange(authority_index=11, organization_id="org-1"), True),
        ({"owned_by": ORGANIZATION}, AuthorityChange(authority_index=11, organization_id="org-2"), False),
        ({"owner_id": "", "agent_id": ""}, AuthorityChange(authority_index=11, owner_id="owner-1"), True),
        ({"owner_id": "", "agent_id": ""}, AuthorityChange(authority_index=11, owner_id="owner-2"), False),
    ],
)
async def test_a_change_of_a_party_ends_what_is_on_its_account_or_its_key(
    custody: Custody, changes: dict[str, object], change: AuthorityChange, *, ends: bool
) -> None:
    """An organization's halt ends its agents' leases; an owner's ends the test calls of their keys, too."""
    custody.vault.changes = changes
    lease = await custody.cache.acquire(QUERY)
    assert isinstance(lease, Lease)
    custody.authority.note_change(change)
    if ends:
        with pytest.raises(LeaseEndedError):
            custody.cache.ensure_usable(lease)
    else:
        custody.cache.ensure_usable(lease)


async def test_that_there_is_no_key_ends_with_a_change_of_the_organizations_keys(custody: Custody) -> None:
    """A key that the organization adds or changes is found at once, also by an agent that had none."""
    custody.vault.answer = replace(custody.bench.no_key(), account=ORGANIZATION)
    await custody.cache.acquire(QUERY)
    await custody.cache.acquire(QUERY)
    assert len(custody.vault.asked) == 1
    custody.authority.note_change(AuthorityChange(authority_index=11, key_id="key-9", organization_id="org-1"))
    custody.vault.answer = replace(custody.vault.answer, authority_index=11)
    await custody.cache.acquire(QUERY)
    assert len(custody.vault.asked) == 2


async def test_a_platform_change_ends_platform_leases(custody: Custody) -> None:
    """Leases of the platform's key end with a change of the platform's keys."""
    custody.vault.changes = {"owned_by": Account(AccountKind.PLATFORM)}
    lease = await custody.cache.acquire(LeaseQuery(operation=Operation.EMBEDDING_GENERATION))
    assert isinstance(lease, Lease)
    custody.authority.note_change(AuthorityChange(authority_index=11, platform=True))
    with pytest.raises(LeaseEndedError):
        custody.cache.ensure_usable(lease)


async def test_a_lease_that_arrives_after_its_revocation_is_dropped(custody: Custody) -> None:
    """A grant from before a change that is known already is asked for again, a bounded number of times."""
    custody.authority.note_change(AuthorityChange(authority_index=11, key_id="key-1"))
    with pytest.raises(SuiteUnavailableError):
        await custody.cache.acquire(QUERY)
    assert len(custody.vault.asked) == 3
    custody.vault.changes = {"authority_index": 11}
    assert isinstance(await custody.cache.acquire(QUERY), Lease)


async def test_revocations_are_remembered_longer_than_leases_live(custody: Custody) -> None:
    """Housekeeping forgets a change only when no lease from before it can be alive."""
    custody.authority.note_change(AuthorityChange(authority_index=11, key_id="key-1"))
    await custody.pass_time(299)
    custody.authority.forget_old()
    old = custody.bench.lease()
    with pytest.raises(LeaseEndedError):
        custody.cache.ensure_usable(old)
    await custody.pass_time(2)
    custody.authority.forget_old()
    custody.cache.ensure_usable(custody.bench.lease())


async def test_no_key_is_kept_until_one_is_added(custody: Custody) -> None:
    """That there is no key holds under the same bound as a lease, and ends when the owner adds one."""
    custody.vault.answer = custody.bench.no_key()
    assert isinstance(await custody.cache.acquire(QUERY), NoKey)
    assert isinstance(await custody.cache.acquire(QUERY), NoKey)
    assert len(custody.vault.asked) == 1
    custody.vault.answer = None
    custody.vault.changes = {"authority_index": 11}
    custody.authority.note_change(AuthorityChange(authority_index=11, key_id="key-9", owner_id="owner-1"))
    assert isinstance(await custody.cache.acquire(QUERY), Lease)


async def test_callers_who_need_the_same_lease_share_one_fetch(custody: Custody) -> None:
    """A cold agent under load costs one lease; a caller who leaves takes nothing from the others."""
    custody.vault.gate = asyncio.Event()
    calls = [asyncio.create_task(custody.cache.acquire(QUERY)) for _ in range(5)]
    await custody.clock.advance(timedelta(milliseconds=1))
    calls[0].cancel()
    custody.vault.gate.set()
    leases = await asyncio.gather(*calls[1:])
    assert len({id(lease) for lease in leases}) == 1
    assert len(custody.vault.asked) == 1


async def test_a_strict_lease_serves_one_call(custody: Custody) -> None:
    """With strict custody nothing is kept, and callers at the same time get leases of their own."""
    custody.vault.changes = {"is_strict": True}
    leases = await asyncio.gather(*(custody.cache.acquire(QUERY) for _ in range(3)))
    assert len({lease.lease_id for lease in leases if isinstance(lease, Lease)}) == 3
    assert custody.cache.entries == 0


async def test_validations_and_second_candidates_are_never_kept(custody: Custody) -> None:
    """They are asked for once, and an answer for one would be wrong for another."""
    await custody.cache.acquire(replace(QUERY, excluded_key_ids=("key-1",)))
    await custody.cache.acquire(LeaseQuery(operation=Operation.KEY_VALIDATION, key_id="key-1"))
    assert custody.cache.entries == 0


async def test_the_cache_is_bounded(custody: Custody) -> None:
    """The oldest answer makes room."""
    for number in range(5):
        await custody.cache.acquire(replace(QUERY, agent_id=f"agent-{number}"))
    assert custody.cache.entries == 3


async def test_what_has_ended_is_let_go_of_although_nobody_asks(custody: Custody) -> None:
    """An idle agent's key does not stay in memory: expired and revoked leases go with the next sweep, and are wiped."""
    first = await custody.cache.acquire(QUERY)
    assert isinstance(first, Lease)
    secret = first.secret
    del first
    await custody.pass_time(30)
    custody.vault.changes = {"key_id": "key-2"}
    await custody.cache.acquire(replace(QUERY, agent_id="agent-2"))
    custody.cache.drop_ended()
    assert custody.cache.entries == 2
    await custody.pass_time(31)
    custody.cache.drop_ended()
    assert custody.cache.entries == 1
    assert secret.is_wiped
    custody.authority.note_change(AuthorityChange(authority_index=11, key_id="key-2"))
    custody.cache.drop_ended()
    assert custody.cache.entries == 0


async def test_a_loss_of_contact_alone_ends_no_lease(custody: Custody) -> None:
    """When contact comes back within its life, a kept lease is good again."""
    lease = await custody.cache.acquire(QUERY)
    await custody.clock.advance(timedelta(seconds=10))
    custody.cache.drop_ended()
    custody.echo()
    assert await custody.cache.acquire(QUERY) is lease


async def test_a_secret_is_wiped_when_nobody_uses_its_lease(custody: Custody) -> None:
    """The plaintext is overwritten as soon as the last call has let go of the lease."""
    lease = await custody.cache.acquire(LeaseQuery(operation=Operation.KEY_VALIDATION, key_id="key-1"))
    assert isinstance(lease, Lease)
    secret = lease.secret
    assert not secret.is_wiped
    del lease
    assert secret.is_wiped

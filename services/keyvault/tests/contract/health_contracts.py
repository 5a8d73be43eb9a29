"""What every adapter of the stores of key health must do. Each suite is run once per adapter."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.erasures import ErasureState
from keyvault.domain.key_checks import CheckRules, ExpiryNotice, KeyCheck, plan_check
from keyvault.domain.ownership import owner_account
from keyvault.domain.provider_keys import KeyState, ProviderKey, StoredKey, decode_key
from keyvault.domain.requests import RequestIdentity
from keyvault.ports import (
    ChangedKeys,
    Claim,
    CorruptionLog,
    ErasureStore,
    KeyCheckStore,
    KeyRow,
    NoticeEntry,
    SecretStore,
)
from services.keyvault.tests.contract.store_contracts import Scribe, Store, key_id
from services.keyvault.tests.unit.builders import NOW, owner_holder, provider_key

if TYPE_CHECKING:
    from datetime import datetime

RULES = CheckRules(jitter=0)
MINUTE = timedelta(minutes=1)
DAY = timedelta(days=1)
LATER = NOW + 2 * DAY
NOTHING_CHANGED = ChangedKeys(position=-1, next_position=-1, rows=(), is_complete=True)


class HealthStores(Protocol):
    """The stores under test, on one authority."""

    store: Store
    checks: KeyCheckStore
    erasures: ErasureStore
    secrets: SecretStore
    corruption: CorruptionLog

    async def add_backup(self, backup_id: str, snapshot_time: datetime, expire_time: datetime) -> None:
        """Register a backup."""


def numbered(number: int, **changes: Any) -> ProviderKey:
    """Return a key with an id of its own."""
    return provider_key(**({"provider_key_id": key_id(number)} | changes))


def claim(holder: str = "router-1", **changes: Any) -> Claim:
    """Return a claim that the rates do not limit."""
    usual: dict[str, Any] = {
        "providers": ("anthropic", "openai"),
        "claims_max": 16,
        "holder": holder,
        "now": LATER,
        "life": 2 * MINUTE,
        "window": MINUTE,
        "provider_max": 1000,
        "total_max": 1000,
    }
    return Claim(**(usual | changes))


def request(number: int, owner_id: str = "owner-1") -> RequestIdentity:
    """Return a request id."""
    return RequestIdentity(f"EraseOwner/owner:{owner_id}", f"0192f0c1-2f00-7000-8000-{number:012d}", 1, bytes(32))


def erased_entry(owner_id: str = "owner-1") -> AuditEntry:
    """Return the entry of an erasure."""
    account = owner_account(owner_id)
    return AuditEntry(kind=EntryKind.OWNER_ERASED, time=NOW, caller="edge", actor="test", account=account)


def stored(row: KeyRow) -> StoredKey:
    """Return the key in a row without verifying it."""
    return StoredKey(decode_key(row.record), row.seal)


async def planned(stores: HealthStores) -> list[KeyCheck]:
    """Plan all that changed, as the worker does, and return the plans."""
    changed = await stores.checks.read_changed(1000)
    plans = [plan_check(None, stored(row), rules=RULES, drawn=0.5) for row in changed.rows]
    kept = [plan for plan in plans if plan is not None]
    ended = [row.found_by.provider_key_id for row, plan in zip(changed.rows, plans, strict=True) if plan is None]
    await stores.checks.plan(kept, ended, changed)
    return kept


class KeyCheckStoreContract:
    """Plans follow authority; claims are exclusive; notices are given once."""

    async def test_what_changed_is_read_once_and_in_order(self, stores: HealthStores, scribe: Scribe) -> None:
        """A batch ends where the next begins, and a key that changed meanwhile comes again."""
        for number in range(1, 4):
            await scribe.put(numbered(number))
        await scribe.put(numbered(1, label="later"), expected_index=1, with_secret=False)
        first = await stores.checks.read_changed(2)
        assert [row.seal.audit_index for row in first.rows] == [2, 3]
        assert (first.position, first.next_position, first.is_complete) == (0, 3, False)
        await stores.checks.plan([], [], first)
        second = await stores.checks.read_changed(2)
        assert [row.seal.audit_index for row in second.rows] == [4]
        assert (second.position, second.next_position, second.is_complete) == (3, 4, True)
        await stores.checks.plan([], [], second)
        third = await stores.checks.read_changed(2)
        assert (third.rows, third.position, third.next_position) == ((), 4, 4)

    async def test_two_planners_at_once_harm_nothing(self, stores: HealthStores, scribe: Scribe) -> None:
        """The position never moves back, and an older plan does not replace a newer one."""
        await scribe.put(numbered(1))
        slow = await stores.checks.read_changed(10)
        await scribe.put(numbered(1, state=KeyState.INVALID), expected_index=1, with_secret=False)
        (newer,) = await planned(stores)
        older = plan_check(None, stored(slow.rows[0]), rules=RULES, drawn=0.5)
        assert older is not None
        await stores.checks.plan([older], [], slow)
        assert await stores.checks.checks_of([key_id(1), key_id(2)]) == [newer]
        assert (await stores.checks.read_changed(10)).position == 2

    async def test_a_revoked_key_is_not_claimed(self, stores: HealthStores, scribe: Scribe) -> None:
        """Its plan is forgotten."""
        await scribe.put(numbered(1))
        await planned(stores)
        await scribe.put(numbered(1, state=KeyState.REVOKED), expected_index=1, with_secret=False)
        await planned(stores)
        assert await stores.checks.claim(claim()) == []

    async def test_a_claim_is_exclusive_until_it_ends(self, stores: HealthStores, scribe: Scribe) -> None:
        """Nobody else is given the key within its claim; one that is not reported is due again, each time later."""
        await scribe.put(numbered(1))
        await planned(stores)
        now, lives = LATER, []
        assert await stores.checks.claim(claim(now=NOW)) == []
        for _ in range(4):
            assert await stores.checks.claim(claim(now=now)) == [key_id(1)]
            assert await stores.checks.claim(claim("router-2", now=now)) == []
            assert await stores.checks.claim(claim("router-2", now=now + 2 * MINUTE - timedelta(seconds=1))) == []
            due = await stores.checks.next_due_time(["anthropic"])
            assert due is not None
            lives.append(due - now)
            now = due
        assert lives == [2 * MINUTE, 4 * MINUTE, 8 * MINUTE, 16 * MINUTE]

    async def test_a_claim_ends_with_its_report(self, stores: HealthStores, scribe: Scribe) -> None:
        """A key that was tested, or has another secret, may be claimed again; another change of it ends no claim."""
        await scribe.put(numbered(1))
        await planned(stores)
        changes: list[tuple[dict[str, Any], bool]] = [
            ({"label": "other"}, False),
            ({"state": KeyState.FAILING}, False),
            ({"validate_time": NOW}, True),
            ({"validate_time": NOW, "key_version": 2}, True),
        ]
        for index, (change, is_over) in enumerate(changes, start=1):
            await stores.checks.claim(claim())
            await scribe.put(numbered(1, **change), expected_index=index, with_secret=False)
            await planned(stores)
            again = await stores.checks.claim(claim("router-2"))
            assert again == ([key_id(1)] if is_over else [])

    async def test_eight_claimers_get_no_key_twice(self, stores: HealthStores, scribe: Scribe) -> None:
        """Claimed at once, by any number, each key is one claimer's; and all are claimed."""
        for number in range(1, 65):
            await scribe.put(numbered(number), window=None)
        await planned(stores)

        async def work(holder: str) -> list[str]:
            mine: list[str] = []
            while got := await stores.checks.claim(claim(holder, claims_max=3)):
                mine += got
            return mine

        claimed = await asyncio.gather(*(work(f"router-{number}") for number in range(8)))
        everything = [each for mine in claimed for each in mine]
        assert sorted(everything) == [key_id(number) for number in range(1, 65)]

    async def test_claims_keep_the_rates(self, stores: HealthStores, scribe: Scribe) -> None:
        """Of each provider and of all, also with many claimers; another minute, another share; oldest first."""
        for number in range(1, 13):
            provider = "anthropic" if number <= 8 else "openai"
            created = NOW + timedelta(seconds=number)
            await scribe.put(numbered(number, provider=provider, create_time=created))
        await planned(stores)
        limits: dict[str, Any] = {"provider_max": 3, "total_max": 5}
        claimed = await asyncio.gather(
            *(stores.checks.claim(claim(f"r-{n}", claims_max=2, **limits)) for n in range(8))
        )
        got = sorted(each for mine in claimed for each in mine)
        assert got == [key_id(number) for number in (1, 2, 3, 9, 10)]
        assert await stores.checks.claim(claim(providers=("openai",), **limits)) == []
        again = await stores.checks.claim(claim(providers=("openai",), now=LATER + MINUTE, **limits))
        assert sorted(again) == [key_id(11), key_id(12)]

    async def test_a_key_that_could_not_be_leased_is_put_off(self, stores: HealthStores, scribe: Scribe) -> None:
        """Its claim ends, and it is due at the time that is said."""
        await scribe.put(numbered(1))
        await planned(stores)
        await stores.checks.claim(claim())
        await stores.checks.put_off([key_id(1)], LATER + timedelta(seconds=5))
        assert await stores.checks.next_due_time(["anthropic"]) == LATER + timedelta(seconds=5)
        assert await stores.checks.claim(claim(now=LATER + timedelta(seconds=5))) == [key_id(1)]
        assert await stores.checks.next_due_time(["mistral"]) is None

    async def test_what_was_tried_is_remembered(self, stores: HealthStores, scribe: Scribe) -> None:
        """The planner sees how often a key was tried, so that it can be tried less and less often."""
        await scribe.put(numbered(1))
        (plan,) = await planned(stores)
        await stores.checks.claim(claim())
        (check,) = await stores.checks.checks_of([key_id(1)])
        assert check == replace(plan, attempts=1, next_check_time=LATER + 2 * MINUTE)

    async def test_what_expires_is_found_when_its_time_has_come(self, stores: HealthStores, scribe: Scribe) -> None:
        """The oldest first, until it is seen to; a later time that was planned meanwhile is not taken off."""
        for number in (1, 2):
            await scribe.put(numbered(number, expire_time=NOW + number * DAY))
        await planned(stores)
        assert await stores.checks.find_expired(NOW + DAY - timedelta(microseconds=1), 10) == []
        assert await stores.checks.find_expired(NOW + 2 * DAY, 10) == [key_id(1), key_id(2)]
        assert await stores.checks.find_expired(NOW + 2 * DAY, 1) == [key_id(1)]
        await stores.checks.forget_expiry([key_id(1), key_id(2)], NOW + DAY)
        assert await stores.checks.find_expired(NOW + 2 * DAY, 10) == [key_id(2)]

    async def test_a_notice_is_given_once(self, stores: HealthStores, scribe: Scribe) -> None:
        """For a key, a time and a threshold; by two replicas at once, and after the key was planned anew."""
        key = numbered(1, expire_time=NOW + 20 * DAY)
        await scribe.put(key)
        (plan,) = await planned(stores)
        assert plan.next_notice_time == NOW + 6 * DAY
        assert await stores.checks.find_notices(NOW + 5 * DAY, 10) == []
        assert await stores.checks.find_notices(NOW + 6 * DAY, 10) == [key_id(1)]
        far, near = (
            ExpiryNotice(NOW + 20 * DAY, 14 * DAY, NOW + 19 * DAY),
            ExpiryNotice(NOW + 20 * DAY, DAY, None),
        )
        entry = AuditEntry(kind=EntryKind.KEY_EXPIRING, time=NOW, caller="keyvault", provider_key_id=key_id(1))
        asked = [NoticeEntry(key_index=1, notice=far, entry=entry)]
        given = await asyncio.gather(*(stores.checks.append_notices(asked) for _ in range(4)))
        assert sum(given) == 1
        assert await stores.checks.find_notices(NOW + 18 * DAY, 10) == []
        await scribe.put(replace(key, label="later"), expected_index=1, with_secret=False)
        await planned(stores)
        again = [NoticeEntry(key_index=3, notice=far, entry=entry)]
        assert await stores.checks.append_notices(again) == 0
        assert await stores.checks.append_notices([replace(again[0], notice=near)]) == 1
        assert await stores.checks.find_notices(NOW + 20 * DAY, 10) == []
        kinds = [kind for _, kind, _, _ in await stores.store.leaves()]
        assert kinds.count(EntryKind.KEY_EXPIRING) == 2

    async def test_no_notice_is_given_of_a_row_that_was_superseded(self, stores: HealthStores, scribe: Scribe) -> None:
        """What the entry would say of the key is no longer so; it stays due, and is read again."""
        await scribe.put(numbered(1, expire_time=NOW + DAY))
        await scribe.put(numbered(1, expire_time=NOW + 2 * DAY), expected_index=1, with_secret=False)
        await planned(stores)
        entry = AuditEntry(kind=EntryKind.KEY_EXPIRING, time=NOW, caller="keyvault", provider_key_id=key_id(1))
        notice = ExpiryNotice(NOW + DAY, DAY, None)
        assert await stores.checks.append_notices([NoticeEntry(key_index=1, notice=notice, entry=entry)]) == 0
        assert await stores.checks.find_notices(NOW + 2 * DAY, 10) == [key_id(1)]
        await stores.checks.forget_notices([key_id(1)], NOW + 2 * DAY)
        assert await stores.checks.find_notices(NOW + 2 * DAY, 10) == []


class ErasureStoreContract:
    """Secrets go at once with the entry that says so; what is to be revoked is told until it is."""

    async def test_an_erasure_destroys_every_secret_of_its_owner_and_no_other(
        self, stores: HealthStores, scribe: Scribe
    ) -> None:
        """Those of another owner stay; the entry carries the index that the erasure has."""
        for number in (1, 2):
            await scribe.put(numbered(number))
        await scribe.put(numbered(3, holder=owner_holder("owner-2")))
        begun = await stores.erasures.begin("owner-1", entry=erased_entry(), request=request(1))
        assert begun == 4
        assert [row.provider_key_id for row in await stores.secrets.walk(("", 0), 10)] == [key_id(3)]
        index, kind, _, _ = (await stores.store.leaves())[-1]
        assert (index, kind) == (4, EntryKind.OWNER_ERASED)
        erasure = await stores.erasures.get("owner-1")
        assert erasure is not None
        assert (erasure.erased_keys, erasure.finish_time, erasure.state(NOW)) == (2, None, ErasureState.ERASED_LIVE)
        assert await stores.erasures.get("owner-2") is None

    async def test_what_is_unrevoked_is_told_until_it_is_revoked(self, stores: HealthStores, scribe: Scribe) -> None:
        """By the ids of keys, a page at a time; a key that was made later is not among them."""
        for number in (1, 2, 3):
            await scribe.put(numbered(number))
        await stores.erasures.begin("owner-1", entry=erased_entry(), request=request(1))
        await scribe.put(numbered(4))
        (erasure,) = await stores.erasures.unfinished(10)
        first = await stores.erasures.unrevoked(erasure, after_key_id="", limit=2)
        assert [row.found_by.provider_key_id for row in first] == [key_id(1), key_id(2)]
        for number in (1, 2, 3):
            key = numbered(number, state=KeyState.REVOKED)
            await scribe.put(key, expected_index=number, with_secret=False)
        assert await stores.erasures.unrevoked(erasure, after_key_id="", limit=10) == []
        await stores.erasures.finish(erasure, NOW + MINUTE)
        assert await stores.erasures.unfinished(10) == []
        finished = await stores.erasures.get("owner-1", erasure.begin_index)
        assert finished is not None
        assert (finished.last_index, finished.finish_time) == (8, NOW + MINUTE)

    async def test_a_secret_that_was_replaced_meanwhile_is_revoked_too(
        self, stores: HealthStores, scribe: Scribe
    ) -> None:
        """The key was there when its owner was erased, whatever was done with it since."""
        await scribe.put(numbered(1))
        await stores.erasures.begin("owner-1", entry=erased_entry(), request=request(1))
        await scribe.put(numbered(1, key_version=2), expected_index=1)
        (erasure,) = await stores.erasures.unfinished(10)
        (row,) = await stores.erasures.unrevoked(erasure, after_key_id="", limit=10)
        assert row.found_by.key_version == 2

    async def test_an_erasure_stands(self, stores: HealthStores, scribe: Scribe) -> None:
        """The same request, and another one while nothing was made since, get the one that there is."""
        await scribe.put(numbered(1))
        begun = await asyncio.gather(
            *(stores.erasures.begin("owner-1", entry=erased_entry(), request=request(1)) for _ in range(4))
        )
        assert set(begun) == {2}
        assert await stores.erasures.begin("owner-1", entry=erased_entry(), request=request(2)) == 2
        await scribe.put(numbered(2))
        assert await stores.erasures.begin("owner-1", entry=erased_entry(), request=request(2)) == 2
        assert await stores.erasures.begin("owner-1", entry=erased_entry(), request=request(3)) == 4
        assert [each.begin_index for each in await stores.erasures.unfinished(10)] == [2, 4]

    async def test_backups_of_before_hold_what_was_erased(self, stores: HealthStores, scribe: Scribe) -> None:
        """Until the last of them has expired; a backup of afterwards does not count."""
        await stores.erasures.begin("owner-1", entry=erased_entry(), request=request(1))
        (erasure,) = await stores.erasures.unfinished(10)
        await stores.erasures.finish(erasure, NOW)
        far = NOW + 36_500 * DAY
        await stores.add_backup("before", NOW - DAY, far)
        await stores.add_backup("before that", NOW - 2 * DAY, far - DAY)
        await stores.add_backup("afterwards", NOW + DAY, far + DAY)
        finished = await stores.erasures.get("owner-1")
        assert finished is not None
        assert (finished.backups_expire_time, finished.state(NOW)) == (far, ErasureState.ERASED_LIVE)
        assert finished.state(far) is ErasureState.ERASED


class SecretStoreContract:
    """All secrets one after another, and the equals of one."""

    async def test_secrets_are_walked_one_after_another(self, stores: HealthStores, scribe: Scribe) -> None:
        """Each with the present row of its key; a page begins after the one before."""
        for number in (1, 2, 3):
            await scribe.put(numbered(number))
        first = await stores.secrets.walk(("", 0), 2)
        rest = await stores.secrets.walk((first[-1].provider_key_id, first[-1].key_version), 2)
        assert [(row.provider_key_id, row.key_version) for row in first + rest] == [
            (key_id(number), 1) for number in (1, 2, 3)
        ]
        assert all(row.key is not None and row.key.found_by.provider_key_id == row.provider_key_id for row in first)
        assert {row.kek_version for row in first} == {1}

    async def test_a_secret_without_a_row_of_its_version_is_told(self, stores: HealthStores, scribe: Scribe) -> None:
        """It is walked all the same, so that it can be said that nothing opens it."""
        await scribe.put(numbered(1))
        await scribe.put(numbered(1, key_version=2), expected_index=1, with_secret=False)
        (row,) = await stores.secrets.walk(("", 0), 2)
        assert row.key is None

    async def test_equals_are_found_in_one_account_or_in_all(self, stores: HealthStores, scribe: Scribe) -> None:
        """Never the key itself, and none of a key without a secret."""
        await scribe.put(numbered(1))
        await scribe.put(numbered(2))
        await scribe.put(numbered(3, holder=owner_holder("owner-2")))
        await scribe.put(numbered(4, state=KeyState.REVOKED), with_secret=False)
        of_mine = await stores.secrets.find_equal(key_id(1), owned_by=owner_account("owner-1"), limit=10)
        assert [row.found_by.provider_key_id for row in of_mine] == [key_id(2)]
        of_all = await stores.secrets.find_equal(key_id(1), owned_by=None, limit=10)
        assert [row.found_by.provider_key_id for row in of_all] == [key_id(2), key_id(3)]
        assert len(await stores.secrets.find_equal(key_id(1), owned_by=None, limit=1)) == 1
        assert await stores.secrets.find_equal(key_id(4), owned_by=None, limit=10) == []


class CorruptionLogContract:
    """What was found is said once."""

    async def test_a_finding_is_said_once(self, stores: HealthStores, scribe: Scribe) -> None:
        """However many find it; of another row, another error or another state of the row it is another one."""
        entry = AuditEntry(kind=EntryKind.CORRUPTION_FOUND, time=NOW, caller="keyvault")
        said = await asyncio.gather(
            *(stores.corruption.append_corruption("key/1", "RowRolledBack", 5, entry) for _ in range(4))
        )
        assert sum(said) == 1
        for finding in (("key/2", "RowRolledBack", 5), ("key/1", "RowMissing", 5), ("key/1", "RowRolledBack", 6)):
            assert await stores.corruption.append_corruption(*finding, entry)
        assert len(await stores.store.leaves()) == 4

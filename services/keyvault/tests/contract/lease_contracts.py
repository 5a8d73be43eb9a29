"""What every adapter of leases, shares and halts must do. Each suite is run once per adapter, beside this module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from keyvault.domain.audit_log import AuditEntry, EntryKind, decode_leaf
from keyvault.domain.halts import Halt, HaltKind, HaltScope, HaltSet, decode_halts, encode_halts
from keyvault.domain.keyring import KeyPurpose, KeyState
from keyvault.domain.ownership import Account, AccountKind, Holder, Scope
from keyvault.domain.provider_keys import KeyState as ProviderKeyState
from keyvault.domain.provider_keys import Operation
from keyvault.domain.requests import RequestIdentity
from keyvault.domain.shares import KeyShare, ShareCap, decode_share
from keyvault.ports import AuthorityQuery, KeyFilter, LeaseGrant, PutResult, ShareFilter
from services.keyvault.tests.contract.store_contracts import (
    REQUEST_ID,
    Scribe,
    Store,
    binding,
    grant,
    key_id,
    new_scribe,
)
from services.keyvault.tests.unit.builders import NOW, agent_holder, provider_key

ORGANIZATION = Account(AccountKind.ORGANIZATION, "org-1")


def share(number: int = 1, agent_id: str = "agent-1", **changes: Any) -> KeyShare:
    """Return a share of a key with an agent."""
    usual: dict[str, Any] = {
        "provider_key_id": key_id(number),
        "agent_id": agent_id,
        "organization_id": "org-1",
        "operations": (Operation.CHAT,),
        "cap": ShareCap(day_calls=5),
        "is_ended": False,
        "create_time": NOW,
    }
    return KeyShare(**(usual | changes))


def halt(name: str = "owner-1") -> Halt:
    """Return a halt of an owner."""
    return Halt(
        halt_id=name,
        scope=HaltScope(HaltKind.OWNER, name),
        reason="a test",
        actor="test",
        owner_id=name,
        create_time=NOW,
    )


class _Contract:
    @pytest.fixture
    async def scribe(self, store: Store) -> Scribe:
        """Return a writer on a fresh keyring."""
        return await new_scribe(store)


class LeaseLogContract(_Contract):
    """A lease is appended while every row that it relies upon is the present one."""

    async def appended(self, store: Store, halts_index: int, *grants: LeaseGrant) -> list[int | None]:
        """Append leases and return their indexes."""
        answers = await store.authority.append_leases(list(grants), halts_index=halts_index)
        return [None if lease is None else lease.audit_index for lease in answers]

    async def test_leases_are_appended_while_their_rows_are_the_present_ones(
        self, store: Store, scribe: Scribe
    ) -> None:
        """What was overtaken is left out, and the others get consecutive indexes and their own secrets."""
        await scribe.bind(binding())
        await scribe.put(provider_key(provider_key_id=key_id(1)))
        await scribe.put(provider_key(provider_key_id=key_id(2)))
        await scribe.halt()
        appended = await store.authority.append_leases(
            [
                grant(key_id(2), 3, agent_id="agent-1", binding_index=1),
                grant(key_id(1), 99),
                grant(key_id(1), 2, agent_id="agent-1", binding_index=99),
                grant(key_id(1), 2, agent_id="agent-2", binding_index=1),
                grant(key_id(9), 2),
                grant(key_id(1), 2),
            ],
            halts_index=4,
        )
        assert [None if lease is None else lease.audit_index for lease in appended] == [5, None, None, None, None, 6]
        assert appended[0].envelope != appended[5].envelope
        assert await store.authority.head() == 6
        logged = [decode_leaf(leaf).provider_key_id for _, kind, leaf, _ in await store.leaves() if kind == 100]
        assert logged == [key_id(2), key_id(1)]

    async def test_no_lease_is_appended_on_a_superseded_row(self, store: Store, scribe: Scribe) -> None:
        """A lease that was picked before a change is not granted after it; neither on the key nor on the binding."""
        await scribe.halt()
        await scribe.bind(binding())
        await scribe.put(provider_key())
        key = provider_key().provider_key_id
        await scribe.put(provider_key(priority=1), expected_index=3, with_secret=False)
        assert await self.appended(store, 1, grant(key, 3)) == [None]
        await scribe.bind(binding(version=2), expected_index=2)
        assert await self.appended(store, 1, grant(key, 4, agent_id="agent-1", binding_index=2)) == [None]
        assert await store.authority.head() == 5

    async def test_a_revoked_key_keeps_no_secret(self, store: Store, scribe: Scribe) -> None:
        """Not even a lease on its present row opens anything."""
        await scribe.halt()
        await scribe.put(provider_key())
        revoked = provider_key(state=ProviderKeyState.REVOKED)
        await scribe.put(revoked, expected_index=2, with_secret=False)
        assert await self.appended(store, 1, grant(revoked.provider_key_id, 3)) == [None]

    async def test_a_replaced_secret_is_the_only_one(self, store: Store, scribe: Scribe) -> None:
        """After a replacement a lease opens the new version."""
        await scribe.halt()
        await scribe.put(provider_key())
        key = provider_key().provider_key_id
        before = await store.authority.append_leases([grant(key, 2)], halts_index=1)
        await scribe.put(provider_key(key_version=2), expected_index=2)
        after = await store.authority.append_leases([grant(key, 4)], halts_index=1)
        assert before[0].envelope != after[0].envelope

    async def test_no_lease_is_appended_on_a_share_that_changed(self, store: Store, scribe: Scribe) -> None:
        """Neither on other terms than those it was picked on, nor after the share ended, nor for another agent."""
        await scribe.halt()
        await scribe.bind(binding())
        await scribe.put(provider_key(provider_key_id=key_id(1)))
        await scribe.share(share())
        on_share = grant(key_id(1), 3, agent_id="agent-1", binding_index=2, share_index=4)
        assert await self.appended(store, 1, on_share) == [5]
        await scribe.share(share(operations=(Operation.GUARDRAIL_EVALUATION,)), expected_index=4)
        assert await self.appended(store, 1, on_share) == [None]
        assert await self.appended(store, 1, replace(on_share, share_index=6)) == [7]
        await scribe.bind(binding("agent-2"))
        stranger = replace(on_share, agent_id="agent-2", binding_index=8, share_index=6)
        assert await self.appended(store, 1, stranger) == [None]
        await scribe.share(share(is_ended=True), expected_index=6)
        assert await self.appended(store, 1, replace(on_share, share_index=6)) == [None]
        assert await self.appended(store, 1, replace(on_share, share_index=9)) == [None]

    async def test_no_lease_is_appended_under_a_set_of_halts_that_changed(self, store: Store, scribe: Scribe) -> None:
        """All of a batch are refused: what was picked knows nothing of the new halt. Without a set, too."""
        await scribe.put(provider_key(provider_key_id=key_id(1)))
        assert await self.appended(store, 0, grant(key_id(1), 1)) == [None]
        await scribe.halt()
        assert await self.appended(store, 2, grant(key_id(1), 1), grant(key_id(1), 1)) == [3, 4]
        await scribe.halt(HaltSet((halt(),)), expected_index=2)
        assert await self.appended(store, 2, grant(key_id(1), 1), grant(key_id(1), 1)) == [None, None]
        assert await self.appended(store, 5, grant(key_id(1), 1)) == [6]

    async def test_shares_and_halts_come_with_authority(self, store: Store, scribe: Scribe) -> None:
        """An agent's shares that have not ended with their keys, and the seal of the set of halts."""
        of_organization = Holder(Scope.ORGANIZATION, ORGANIZATION)
        for number in (1, 2, 3):
            await scribe.put(provider_key(provider_key_id=key_id(number), holder=of_organization))
        await scribe.share(share(1))
        await scribe.share(share(2, "agent-2"))
        await scribe.share(share(3))
        await scribe.share(share(3, is_ended=True), expected_index=6)
        query = AuthorityQuery(agent_ids=frozenset({"agent-1"}), key_ids=frozenset(), includes_platform=False)
        rows = await store.authority.read_authority(query)
        assert [row.found_by.provider_key_id for row in rows.keys] == [key_id(1)]
        assert list(rows.shares) == [await store.beside.get_share(key_id(1), "agent-1")]
        assert rows.halts is None
        await scribe.halt()
        rows = await store.authority.read_authority(query)
        assert rows.halts == (await store.beside.get_halts()).seal

    async def test_an_agent_is_listed_the_keys_that_are_shared_with_it(self, store: Store, scribe: Scribe) -> None:
        """The filter by agent means what the agent can use."""
        of_organization = Holder(Scope.ORGANIZATION, ORGANIZATION)
        for number in (1, 2, 3):
            await scribe.put(provider_key(provider_key_id=key_id(number), holder=of_organization))
        await scribe.share(share(1))
        await scribe.share(share(2, "agent-2"))
        await scribe.put(provider_key(provider_key_id=key_id(4), holder=agent_holder()))

        async def listed(agent_id: str) -> list[str]:
            rows = await store.authority.find(KeyFilter(account=ORGANIZATION, agent_id=agent_id))
            return [row.found_by.provider_key_id for row in rows]

        assert await listed("agent-1") == [key_id(1)]
        assert await listed("") == [key_id(1), key_id(2), key_id(3)]


class ShareStoreContract(_Contract):
    """Shares are superseded like keys, and are found by key and agent."""

    async def test_each_state_of_a_share_stays_readable(self, store: Store, scribe: Scribe) -> None:
        """The present row is the last one, also when it says that the share ended."""
        assert await scribe.share(share()) == PutResult("WRITTEN", 1)
        assert await scribe.share(share(is_ended=True), expected_index=1) == PutResult("WRITTEN", 2)
        present = await store.beside.get_share(key_id(1), "agent-1")
        assert (decode_share(present.record), present.is_ended) == (share(is_ended=True), True)
        first = await store.beside.get_share_at(key_id(1), "agent-1", 1)
        assert (decode_share(first.record), first.is_ended, first.seal.audit_index) == (share(), False, 1)
        assert await store.beside.get_share(key_id(1), "agent-2") is None
        assert await store.beside.get_share_at(key_id(1), "agent-1", 3) is None
        (shared, _) = await store.leaves()
        assert decode_leaf(shared[2]).agent_id == "agent-1"

    @pytest.mark.parametrize("expected_index", [0, 2, 99])
    async def test_a_change_of_another_row_than_the_present_is_stale(
        self, store: Store, scribe: Scribe, expected_index: int
    ) -> None:
        """Nothing is written over terms that the writer has not seen."""
        await scribe.share(share())
        assert await scribe.share(share(), expected_index=expected_index) == PutResult("STALE", 1)
        assert await store.beside.head() == 1

    async def test_a_window_or_a_key_that_does_not_fit_writes_nothing(self, store: Store, scribe: Scribe) -> None:
        """As for keys: the row carries the seal of its own index, under the primary key."""
        window = await scribe.window(b"", ahead=5)
        assert await scribe.share(share(), window=window) == PutResult("WINDOW_MISSED", 0)
        await store.set_key_state(KeyPurpose.AUTHORITY_MAC, 1, KeyState.DECRYPT_ONLY)
        assert (await scribe.share(share())).status == "KEY_NOT_PRIMARY"
        assert await store.beside.head() == 0

    async def test_a_request_id_is_used_once(self, store: Store, scribe: Scribe) -> None:
        """The second use is told the first one's answer, which names the share."""
        request = RequestIdentity("ShareKey/owner:o", REQUEST_ID, 1, b"m" * 32)
        await scribe.share(share(), request=request)
        assert await scribe.share(share(2), request=request) == PutResult("REPLAYED", 1)
        recorded = await store.beside.find_request(request.scope, REQUEST_ID)
        assert (recorded.resource_id, recorded.audit_index) == (f"{key_id(1)}/agent-1", 1)

    async def test_shares_of_a_key_are_listed(self, store: Store, scribe: Scribe) -> None:
        """Those that have not ended, by agent, in pages."""
        for agent in ("agent-3", "agent-1", "agent-2"):
            await scribe.share(share(1, agent))
        await scribe.share(share(2, "agent-1"))
        await scribe.share(share(1, "agent-2", is_ended=True), expected_index=3)

        async def listed(**changes: Any) -> list[str]:
            rows = await store.beside.find_shares(ShareFilter(provider_key_id=key_id(1), **changes))
            return [row.agent_id for row in rows]

        assert await listed() == ["agent-1", "agent-3"]
        assert await listed(limit=1) == ["agent-1"]
        assert await listed(after_agent_id="agent-1") == ["agent-3"]
        assert await listed(agent_id="agent-3") == ["agent-3"]
        assert await listed(agent_id="agent-2") == []


class HaltStoreContract(_Contract):
    """There is one set of halts; each state of it stays readable."""

    async def test_the_set_is_superseded_like_keys(self, store: Store, scribe: Scribe) -> None:
        """The present set is the last one; a writer that has not seen it writes nothing."""
        assert await store.beside.get_halts() is None
        assert await scribe.halt() == PutResult("WRITTEN", 1)
        halts = HaltSet((halt(), halt("owner-2")))
        assert await scribe.halt(halts, expected_index=0) == PutResult("STALE", 1)
        assert await scribe.halt(halts, expected_index=1) == PutResult("WRITTEN", 2)
        present = await store.beside.get_halts()
        assert (decode_halts(present.record), present.seal.audit_index) == (halts, 2)
        assert (await store.beside.get_halts_at(1)).record == encode_halts(HaltSet())
        assert await store.beside.get_halts_at(3) is None
        assert [EntryKind(kind) for _, kind, _, _ in await store.leaves()] == [EntryKind.HALTS_CHANGED] * 2

    async def test_a_request_id_is_used_once(self, store: Store, scribe: Scribe) -> None:
        """The second use is told the first one's answer, which names the halt."""
        request = RequestIdentity("Halt/owner:o", REQUEST_ID, 1, b"m" * 32)
        await scribe.halt(HaltSet((halt(),)), request=request, resource_id="owner-1")
        assert await scribe.halt(request=request, expected_index=1) == PutResult("REPLAYED", 1)
        recorded = await store.beside.find_request(request.scope, REQUEST_ID)
        assert (recorded.resource_id, recorded.audit_index) == ("owner-1", 1)

    async def test_a_log_is_new_while_it_tells_of_the_keyring_alone(self, store: Store, scribe: Scribe) -> None:
        """An empty set is made in a new log and in no other."""
        assert await store.beside.is_log_new()
        await store.authority.append([AuditEntry(kind=EntryKind.KEYRING_CHANGED, time=NOW, caller="x")])
        assert await store.beside.is_log_new()
        await store.authority.append([AuditEntry(kind=EntryKind.CALLER_REFUSED, time=NOW, caller="x")])
        assert not await store.beside.is_log_new()

"""What every adapter of the stores must do. Each suite is run once per adapter, in the test modules beside this one."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, Protocol

import pytest

from keyvault.domain.audit_log import AuditEntry, EntryKind, IndexedEntry, decode_leaf, leaf_hash
from keyvault.domain.authority import AuthorityWindow, seal_window
from keyvault.domain.bindings import AgentBinding, encode_binding
from keyvault.domain.envelope import seal
from keyvault.domain.halts import HaltSet, encode_halts
from keyvault.domain.keyring import KeyPurpose, Keyring, KeyState
from keyvault.domain.ownership import PLATFORM, Holder, Scope, owner_account
from keyvault.domain.provider_keys import KeyState as ProviderKeyState
from keyvault.domain.provider_keys import ProviderKey, decode_key, encode_key
from keyvault.domain.requests import RequestIdentity
from keyvault.domain.shares import KeyShare, encode_share
from keyvault.ports import (
    AuditLog,
    AuthorityFeed,
    AuthorityQuery,
    BindingChange,
    BindingStore,
    HaltsChange,
    KeyChange,
    KeyFilter,
    KeyringStore,
    LeaseGrant,
    LeaseLog,
    ProviderKeyStore,
    PutResult,
    SealedVersion,
    ShareChange,
    WatcherRegistry,
    WatcherReport,
)
from keyvault.usecases.hold_keyring import unwrap_records, wrap_new_keys
from servicekit.secrets import Secret
from services.keyvault.tests.unit.builders import NOW, ROOT, SECRET, agent_holder, owner_holder, provider_key

REQUEST_ID = "0192f0c1-2f00-7000-8000-00000000000a"
DAY = timedelta(days=1)


class AuthorityStore(ProviderKeyStore, BindingStore, LeaseLog, AuditLog, AuthorityFeed, Protocol):
    """Everything that is kept beside the log."""


class Store(Protocol):
    """An adapter under test, with what a test looks at past the ports."""

    keyring: KeyringStore
    authority: Any
    beside: Any
    """Shares and halts."""

    async def set_key_state(self, purpose: KeyPurpose, version: int, state: KeyState) -> None:
        """Store another state of a key of the ring."""

    async def leaves(self) -> list[tuple[int, int, bytes, bytes]]:
        """Return (index, kind, leaf, leaf hash) of the whole log."""


def key_id(number: int) -> str:
    """Return the id of a key."""
    return f"0192f0c1-2f00-7000-8000-{number:012d}"


def grant(
    stored_id: str, key_index: int, *, agent_id: str = "", binding_index: int = 0, share_index: int = 0
) -> LeaseGrant:
    """Return a lease to append."""
    entry = AuditEntry(kind=EntryKind.LEASE_GRANTED, time=NOW, caller="router", provider_key_id=stored_id)
    return LeaseGrant(
        agent_id=agent_id,
        binding_index=binding_index,
        provider_key_id=stored_id,
        key_index=key_index,
        share_index=share_index,
        entry=entry,
    )


class Scribe:
    """Writes rows as the use cases do."""

    def __init__(self, store: Store, ring: Keyring) -> None:
        self.store = store
        self.ring = ring

    async def window(self, record: bytes, *, ahead: int = 1, length: int = 8) -> AuthorityWindow:
        """Return a window that begins `ahead` of the head."""
        head = await self.store.authority.head()
        return seal_window(self.ring, record, first_index=head + ahead, length=length)

    async def put(
        self,
        key: ProviderKey,
        *,
        expected_index: int = 0,
        with_secret: bool = True,
        window: AuthorityWindow | None = None,
        request: RequestIdentity | None = None,
    ) -> PutResult:
        """Put a key."""
        record = encode_key(key)
        secret = None
        if with_secret:
            envelope = seal(Secret(SECRET), context=key.envelope_context("test"), kek=self.ring.primary_kek())
            secret = SealedVersion(envelope, 1, bytes(32))
        change = KeyChange(
            key=key,
            record=record,
            expected_index=expected_index,
            window=window or await self.window(record),
            entry=AuditEntry(kind=EntryKind.KEY_CREATED, time=NOW, caller="edge", provider_key_id=key.provider_key_id),
            secret=secret,
            request=request,
        )
        result: PutResult = await self.store.authority.put(change)
        return result

    async def bind(self, binding: AgentBinding, *, expected_index: int = 0) -> PutResult:
        """Put a binding."""
        record = encode_binding(binding)
        change = BindingChange(
            binding=binding,
            record=record,
            expected_index=expected_index,
            window=await self.window(record),
            entry=AuditEntry(kind=EntryKind.AGENT_BOUND, time=NOW, caller="metering", agent_id=binding.agent_id),
        )
        result: PutResult = await self.store.authority.put_binding(change)
        return result

    async def share(self, share: KeyShare, *, expected_index: int = 0, **fields: Any) -> PutResult:
        """Put a share."""
        record = encode_share(share)
        kind = EntryKind.KEY_UNSHARED if share.is_ended else EntryKind.KEY_SHARED
        entry = AuditEntry(
            kind=kind, time=NOW, caller="edge", provider_key_id=share.provider_key_id, agent_id=share.agent_id
        )
        usual: dict[str, Any] = {"window": await self.window(record), "entry": entry}
        change = ShareChange(share=share, record=record, expected_index=expected_index, **(usual | fields))
        result: PutResult = await self.store.beside.put_share(change)
        return result

    async def halt(self, halts: HaltSet | None = None, *, expected_index: int = 0, **fields: Any) -> PutResult:
        """Put the set of halts."""
        record = encode_halts(halts or HaltSet())
        entry = AuditEntry(kind=EntryKind.HALTS_CHANGED, time=NOW, caller="operator")
        usual: dict[str, Any] = {"window": await self.window(record), "entry": entry}
        change = HaltsChange(record=record, expected_index=expected_index, **(usual | fields))
        result: PutResult = await self.store.beside.put_halts(change)
        return result


async def new_scribe(store: Store) -> Scribe:
    """Return a writer on a fresh keyring."""
    records = await wrap_new_keys("test", KeyPurpose, ROOT)
    await store.keyring.create(records)
    return Scribe(store, await unwrap_records("test", records, [ROOT]))


def binding(agent_id: str = "agent-1", owner_id: str = "owner-1", version: int = 1) -> AgentBinding:
    """Return a binding."""
    return AgentBinding(agent_id=agent_id, owner_id=owner_id, account=owner_account(owner_id), binding_version=version)


class KeyringStoreContract:
    """The keyring is made once, and comes back as it was stored."""

    async def test_a_keyring_is_created_once(self, store: Store) -> None:
        """The second of two replicas that start together keeps the first one's keys."""
        first, second = [await wrap_new_keys("test", KeyPurpose, ROOT) for _ in range(2)]
        assert await store.keyring.load() == []
        assert await store.keyring.create(first)
        assert not await store.keyring.create(second)
        assert await store.keyring.load() == first

    async def test_a_purpose_that_a_ring_lacks_is_added_once(self, store: Store) -> None:
        """A replica that adds what is new keeps everything that is stored, also when another was faster."""
        ring, again = [await wrap_new_keys("test", KeyPurpose, ROOT) for _ in range(2)]
        await store.keyring.create(ring[:-1])
        assert await store.keyring.create(again)
        assert await store.keyring.load() == [*ring[:-1], again[-1]]
        assert not await store.keyring.create(ring)


class AuthorityStoreContract:
    """Rows, secrets, requests and the log change together or not at all, and only in the order of the log."""

    @pytest.fixture
    async def scribe(self, store: Store) -> Scribe:
        """Return a writer on a fresh keyring."""
        return await new_scribe(store)

    async def test_a_key_is_written_with_its_entry(self, store: Store, scribe: Scribe) -> None:
        """The row, its seal and its entry carry the same index."""
        key = provider_key()
        result = await scribe.put(key)
        assert (result.status, result.audit_index) == ("WRITTEN", 1)
        row = await store.authority.get(key.provider_key_id)
        assert (decode_key(row.record), row.seal.audit_index) == (key, 1)
        assert row == await store.authority.get_at(key.provider_key_id, 1)
        ((index, kind, leaf, digest),) = await store.leaves()
        assert (index, kind, digest) == (1, EntryKind.KEY_CREATED, leaf_hash(leaf))
        assert decode_leaf(leaf).provider_key_id == key.provider_key_id

    async def test_what_is_missing_is_none(self, store: Store, scribe: Scribe) -> None:
        """Nothing is made up for unknown ids."""
        assert await store.authority.head() == 0
        assert await store.authority.get("none") is None
        assert await store.authority.get_at("none", 1) is None
        assert await store.authority.get_binding("none") is None
        assert await store.authority.get_binding_at("none", 1) is None
        assert await store.authority.find_request("CreateKey/owner:x", REQUEST_ID) is None

    async def test_superseded_rows_are_kept(self, store: Store, scribe: Scribe) -> None:
        """Each state of a key stays readable at its own index."""
        key = provider_key()
        await scribe.put(key)
        await scribe.put(replace(key, label="later"), expected_index=1, with_secret=False)
        assert decode_key((await store.authority.get(key.provider_key_id)).record).label == "later"
        assert decode_key((await store.authority.get_at(key.provider_key_id, 1)).record) == key

    @pytest.mark.parametrize("expected_index", [0, 2, 99])
    async def test_a_change_of_another_row_than_the_present_is_stale(
        self, store: Store, scribe: Scribe, expected_index: int
    ) -> None:
        """Nothing is written over a state that the writer has not seen."""
        await scribe.put(provider_key())
        result = await scribe.put(provider_key(label="x"), expected_index=expected_index)
        assert (result.status, result.audit_index) == ("STALE", 1)
        assert await store.authority.head() == 1

    async def test_a_new_key_cannot_supersede_nothing(self, store: Store, scribe: Scribe) -> None:
        """A change of a key that does not exist is stale."""
        assert await scribe.put(provider_key(), expected_index=5) == PutResult("STALE", 0)
        assert await store.authority.head() == 0

    @pytest.mark.parametrize("ahead", [-7, 2])
    async def test_a_window_that_the_log_missed_writes_nothing(self, store: Store, scribe: Scribe, ahead: int) -> None:
        """A row is never stored without the seal of its own index; the writer is told the head."""
        await store.authority.append([AuditEntry(kind=EntryKind.CALLER_REFUSED, time=NOW, caller="x")] * 9)
        window = await scribe.window(encode_key(provider_key()), ahead=ahead)
        assert await scribe.put(provider_key(), window=window) == PutResult("WINDOW_MISSED", 9)
        assert await store.authority.get(provider_key().provider_key_id) is None

    @pytest.mark.parametrize("ahead", [0, -6])
    async def test_a_window_that_reaches_the_index_will_do(self, store: Store, scribe: Scribe, ahead: int) -> None:
        """The seal is picked for the index that the entry gets."""
        await store.authority.append([AuditEntry(kind=EntryKind.CALLER_REFUSED, time=NOW, caller="x")] * 9)
        window = await scribe.window(encode_key(provider_key()), ahead=ahead)
        assert await scribe.put(provider_key(), window=window) == PutResult("WRITTEN", 10)
        row = await store.authority.get(provider_key().provider_key_id)
        assert row.seal == window.seal_at(10)

    @pytest.mark.parametrize("purpose", [KeyPurpose.KEK, KeyPurpose.AUTHORITY_MAC])
    async def test_a_key_that_is_primary_no_more_writes_nothing(
        self, store: Store, scribe: Scribe, purpose: KeyPurpose
    ) -> None:
        """Who wraps or signs must find its version PRIMARY when it writes."""
        await store.set_key_state(purpose, 1, KeyState.DECRYPT_ONLY)
        assert (await scribe.put(provider_key())).status == "KEY_NOT_PRIMARY"
        assert await store.authority.head() == 0

    async def test_a_change_without_a_secret_needs_no_primary_kek(self, store: Store, scribe: Scribe) -> None:
        """Only what wraps depends on the KEK."""
        await scribe.put(provider_key())
        await store.set_key_state(KeyPurpose.KEK, 1, KeyState.DECRYPT_ONLY)
        result = await scribe.put(provider_key(label="x"), expected_index=1, with_secret=False)
        assert result.status == "WRITTEN"

    async def test_a_request_id_is_used_once(self, store: Store, scribe: Scribe) -> None:
        """The second use writes nothing and is told the first one's answer; another scope is another id."""
        request = RequestIdentity("CreateKey/owner:owner-1", REQUEST_ID, 1, b"m" * 32)
        await scribe.put(provider_key(), request=request)
        again = await scribe.put(provider_key(provider_key_id=key_id(2)), request=request)
        assert again == PutResult("REPLAYED", 1)
        recorded = await store.authority.find_request(request.scope, REQUEST_ID)
        assert (recorded.identity, recorded.resource_id, recorded.audit_index) == (
            request,
            provider_key().provider_key_id,
            1,
        )
        other = replace(request, scope="CreateKey/owner:owner-2")
        assert (await scribe.put(provider_key(provider_key_id=key_id(3)), request=other)).status == "WRITTEN"
        await store.authority.forget_requests(DAY)
        assert await store.authority.find_request(request.scope, REQUEST_ID) is not None

    async def test_bindings_are_superseded_like_keys(self, store: Store, scribe: Scribe) -> None:
        """A transfer leaves the earlier binding readable."""
        assert await scribe.bind(binding()) == PutResult("WRITTEN", 1)
        assert (await scribe.bind(binding(version=2), expected_index=0)).status == "STALE"
        assert await scribe.bind(binding(version=2), expected_index=1) == PutResult("WRITTEN", 2)
        present = await store.authority.get_binding("agent-1")
        assert (present.seal.audit_index, present.record) == (2, encode_binding(binding(version=2)))
        assert (await store.authority.get_binding_at("agent-1", 1)).record == encode_binding(binding())

    async def test_keys_are_listed_by_account(self, store: Store, scribe: Scribe) -> None:
        """Filters and pages apply to the present state of one account's keys, oldest first."""
        await scribe.put(provider_key(provider_key_id=key_id(1)))
        await scribe.put(provider_key(provider_key_id=key_id(2), provider="openai", holder=agent_holder()))
        await scribe.put(provider_key(provider_key_id=key_id(3), holder=agent_holder("agent-2")))
        await scribe.put(provider_key(provider_key_id=key_id(4), state=ProviderKeyState.REVOKED))
        await scribe.put(provider_key(provider_key_id=key_id(5), holder=owner_holder("owner-2")))
        await scribe.put(provider_key(provider_key_id=key_id(6), holder=Holder(Scope.PLATFORM, PLATFORM)))

        async def listed(**changes: Any) -> list[int]:
            rows = await store.authority.find(KeyFilter(**({"account": owner_account("owner-1")} | changes)))
            return [int(row.found_by.provider_key_id[-3:]) for row in rows]

        assert await listed() == [1, 2, 3]
        assert await listed(include_revoked=True) == [1, 2, 3, 4]
        assert await listed(provider="openai") == [2]
        assert await listed(agent_id="agent-1") == [1, 2]
        assert await listed(after_key_id=key_id(1)) == [2, 3]
        assert await listed(limit=2) == [1, 2]
        assert await listed(account=PLATFORM) == [6]
        many = await store.authority.get_many([key_id(1), key_id(5), key_id(9), key_id(1)])
        assert sorted(row.found_by.provider_key_id for row in many) == [key_id(1), key_id(5)]

    async def test_authority_is_read_for_those_asked_about(self, store: Store, scribe: Scribe) -> None:
        """An agent's keys, its owner's, the platform's, and single keys; revoked ones only by name."""
        await scribe.bind(binding())
        await scribe.bind(binding("agent-2", "owner-2"))
        await scribe.put(provider_key(provider_key_id=key_id(1)))
        await scribe.put(provider_key(provider_key_id=key_id(2), holder=agent_holder()))
        await scribe.put(provider_key(provider_key_id=key_id(3), holder=agent_holder("agent-3")))
        await scribe.put(provider_key(provider_key_id=key_id(4), holder=Holder(Scope.PLATFORM, PLATFORM)))
        await scribe.put(provider_key(provider_key_id=key_id(5), state=ProviderKeyState.REVOKED))

        async def read(*agents: str, keys: frozenset[str] = frozenset(), platform: bool = False) -> Any:
            rows = await store.authority.read_authority(
                AuthorityQuery(agent_ids=frozenset(agents), key_ids=keys, includes_platform=platform)
            )
            assert rows.head == 7
            ids = sorted({int(row.found_by.provider_key_id[-3:]) for row in rows.keys})
            return [each.agent_id for each in rows.bindings], ids

        assert await read("agent-1") == (["agent-1"], [1, 2])
        assert await read("agent-2") == (["agent-2"], [])
        assert await read("unknown") == ([], [])
        assert await read(platform=True) == ([], [4])
        assert await read(keys=frozenset({key_id(2)})) == (["agent-1"], [2])
        assert await read(keys=frozenset({key_id(3)})) == ([], [3])
        assert await read(keys=frozenset({key_id(5)})) == (["agent-1"], [5])

    async def test_the_feed_tells_changes_of_authority_alone(self, store: Store, scribe: Scribe) -> None:
        """Leases and refusals move the head; they are not told."""
        await scribe.put(provider_key(provider_key_id=key_id(1)))
        await store.authority.append([AuditEntry(kind=EntryKind.LEASE_GRANTED, time=NOW, caller="x")])
        await scribe.put(provider_key(provider_key_id=key_id(2)))
        await scribe.bind(binding())
        await store.authority.append([AuditEntry(kind=EntryKind.CALLER_REFUSED, time=NOW, caller="x")])
        page = await store.authority.read_changes(0, limit=2)
        assert ([change.audit_index for change in page.changes], page.head) == ([1, 3], 5)
        assert not page.is_complete
        page = await store.authority.read_changes(3, limit=2)
        assert ([change.audit_index for change in page.changes], page.head, page.is_complete) == ([4], 5, True)
        assert isinstance(page.changes[0], IndexedEntry)
        assert page.changes[0].entry.agent_id == "agent-1"
        page = await store.authority.read_changes(5, limit=2)
        assert (list(page.changes), page.head, page.is_complete) == ([], 5, True)

    async def test_entries_are_appended_in_order(self, store: Store, scribe: Scribe) -> None:
        """A batch gets consecutive indexes from the first one returned."""
        entries = [AuditEntry(kind=EntryKind.CALLER_REFUSED, time=NOW, caller=str(each)) for each in range(3)]
        assert await store.authority.append(entries) == 1
        assert await store.authority.append(entries) == 4
        callers = [(index, decode_leaf(leaf).caller) for index, _, leaf, _ in await store.leaves()]
        assert callers == [(1, "0"), (2, "1"), (3, "2"), (4, "0"), (5, "1"), (6, "2")]


class WatcherRegistryContract:
    """A watcher is waited for until it has acknowledged, or its time has passed."""

    async def test_a_watcher_with_time_left_is_pending_until_it_acknowledges(self, registry: WatcherRegistry) -> None:
        """An acknowledgement of the change, or of a later one, ends the waiting for it."""
        await registry.record([WatcherReport("router", "h1", 4, awaits_echo=True)], DAY)
        await registry.record([WatcherReport("router", "h2", 9, awaits_echo=True)], DAY)
        assert await registry.pending(5) == {("router", "h1")}
        assert await registry.acknowledged(5) == {("router", "h2")}
        await registry.record([WatcherReport("router", "h1", 5, awaits_echo=False)], DAY)
        assert await registry.pending(5) == frozenset()
        assert await registry.acknowledged(5) == {("router", "h1"), ("router", "h2")}

    async def test_acknowledging_gives_no_time(self, registry: WatcherRegistry) -> None:
        """Only an echo lets a watcher go on; and time given before is not taken back by a later report."""
        await registry.record([WatcherReport("router", "h1", 4, awaits_echo=False)], DAY)
        assert await registry.pending(5) == frozenset()
        await registry.record([WatcherReport("router", "h1", 4, awaits_echo=True)], DAY)
        await registry.record([WatcherReport("router", "h1", 4, awaits_echo=True)], timedelta(0))
        assert await registry.pending(5) == {("router", "h1")}

    async def test_acknowledgements_do_not_go_back(self, registry: WatcherRegistry) -> None:
        """A second stream of the same process that is behind takes nothing back."""
        both = [
            WatcherReport("router", "h1", 7, awaits_echo=True),
            WatcherReport("router", "h1", 3, awaits_echo=True),
        ]
        await registry.record(both, DAY)
        assert await registry.pending(7) == frozenset()

    async def test_a_watcher_whose_time_has_passed_is_forgotten(self, registry: WatcherRegistry) -> None:
        """It is not pending any more, and later it is not known any more."""
        await registry.record([WatcherReport("router", "h1", 4, awaits_echo=True)], timedelta(0))
        await registry.record([WatcherReport("router", "h2", 4, awaits_echo=True)], DAY)
        assert await registry.pending(5) == {("router", "h2")}
        await registry.forget(timedelta(seconds=-1))
        assert await registry.acknowledged(0) == {("router", "h2")}

"""Which key a lease is granted on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvault.domain.authority import RowSeal
from keyvault.domain.errors import (
    AgentNotFoundError,
    HaltedError,
    LeaseBoundReachedError,
    ProviderKeyNotFoundError,
    ProviderKeyRevokedError,
)
from keyvault.domain.halts import Halt, HaltKind, HaltScope, HaltSet, StoredHalts
from keyvault.domain.leases import (
    AgentPurpose,
    Candidate,
    DistinctKeyBound,
    Judge,
    LeaseItem,
    NoKeyCause,
    NoUsableKey,
    Selection,
    ValidationPurpose,
    agents_keys,
    ensure_agents_owner,
    platform_keys,
    select,
    select_for_validation,
)
from keyvault.domain.ownership import PLATFORM, Account, AccountKind, Holder, Principal, Scope, owner_account
from keyvault.domain.provider_keys import KeyState, Operation, StoredKey
from keyvault.domain.shares import NO_CAP, KeyShare, StoredShare
from services.keyvault.tests.unit.builders import NOW, agent_holder, owner_holder, stored_binding, stored_key

if TYPE_CHECKING:
    from keyvault.domain.bindings import StoredBinding

BINDING = stored_binding()
NO_HALTS = StoredHalts.of(HaltSet(), RowSeal(1, 1, bytes(32)))
ITEM = LeaseItem(AgentPurpose("agent-1", Operation.CHAT, None))


def choose(*keys: StoredKey, item: LeaseItem = ITEM, able: bool = True) -> Selection | NoUsableKey:
    """Select among the keys that the bound agent may use."""
    judge = Judge(item=item, operation=Operation.CHAT, can_serve=lambda *_: able, now=NOW)
    return select(judge, candidates=agents_keys(BINDING, keys), binding=BINDING, halts=NO_HALTS)


def chosen_id(*keys: StoredKey, item: LeaseItem = ITEM) -> str:
    """Return the id of the key that is selected."""
    selection = choose(*keys, item=item)
    assert isinstance(selection, Selection)
    return selection.key.key.provider_key_id


def key(name: str, **changes: Any) -> StoredKey:
    """Return a key with this id."""
    return stored_key(provider_key_id=name, **changes)


def test_the_agents_own_key_comes_first() -> None:
    """Scope decides before priority, priority before age."""
    of_owner = key("1", priority=0)
    late = key("3", holder=agent_holder(), priority=100)
    early = key("2", holder=agent_holder(), priority=100)
    preferred = key("4", holder=agent_holder(), priority=99)
    assert chosen_id(of_owner, late, early, preferred) == "4"
    assert chosen_id(of_owner, late, early) == "2"
    assert chosen_id(of_owner) == "1"


def test_a_key_of_another_agent_or_owner_is_never_chosen() -> None:
    """Same agent and same owner, or same owner: nothing else, also after a transfer."""
    others = [
        key("1", holder=agent_holder("agent-2")),
        key("2", holder=owner_holder("owner-2")),
        key("3", holder=agent_holder("agent-1", "owner-2")),
        key("4", holder=Holder(Scope.PLATFORM, PLATFORM)),
    ]
    found = choose(*others)
    assert isinstance(found, NoUsableKey)
    assert found.cause is NoKeyCause.NO_KEY


@pytest.mark.parametrize("state", list(KeyState))
def test_only_working_states_are_leased(state: KeyState) -> None:
    """ACTIVE and FAILING are leased for operations; a revoked key counts as none."""
    found = choose(key("1", state=state))
    if state in {KeyState.ACTIVE, KeyState.FAILING}:
        assert isinstance(found, Selection)
    else:
        assert isinstance(found, NoUsableKey)
        assert found.cause is (NoKeyCause.NO_KEY if state is KeyState.REVOKED else NoKeyCause.NO_USABLE_KEY)


def test_a_key_that_cannot_do_the_operation_is_passed_over() -> None:
    """It counts as a key, but not for this operation."""
    found = choose(key("1"), able=False)
    assert isinstance(found, NoUsableKey)
    assert found.cause is NoKeyCause.NO_KEY_FOR_OPERATION


def test_a_key_that_cools_down_is_passed_over() -> None:
    """The next key is taken; when there is none, the answer says when to come back."""
    resting = key("1", cool_down_until=NOW + timedelta(seconds=9))
    longer = key("2", cool_down_until=NOW + timedelta(seconds=20))
    assert chosen_id(resting, key("3")) == "3"
    found = choose(resting, longer)
    assert isinstance(found, NoUsableKey)
    assert (found.cause, found.retry_after) == (NoKeyCause.NO_USABLE_KEY, timedelta(seconds=9))


def test_excluded_keys_and_other_providers_are_passed_over() -> None:
    """What the Router has tried, and providers that it did not name, are not chosen."""
    tried = LeaseItem(ITEM.purpose, excluded_key_ids=frozenset({"1"}))
    elsewhere = LeaseItem(ITEM.purpose, providers=frozenset({"openai"}))
    assert chosen_id(key("1"), key("2"), item=tried) == "2"
    assert chosen_id(key("1"), key("2", provider="openai"), item=elsewhere) == "2"


def test_an_agent_of_another_owner_is_not_found() -> None:
    """Unregistered and another owner's are told alike."""
    purpose = AgentPurpose("agent-1", Operation.CHAT, Principal(owner_id="owner-2"))
    for binding in (None, BINDING):
        with pytest.raises(AgentNotFoundError):
            ensure_agents_owner(binding, purpose)
    own = AgentPurpose("agent-1", Operation.CHAT, Principal(owner_id="owner-1"))
    assert ensure_agents_owner(BINDING, own) is BINDING


def test_platform_keys_are_the_platforms_alone() -> None:
    """An owner's key never serves a platform operation."""
    own = key("2", holder=Holder(Scope.PLATFORM, PLATFORM))
    assert platform_keys([key("1"), own]) == [Candidate(own)]


@pytest.mark.parametrize("state", [state for state in KeyState if state is not KeyState.REVOKED])
def test_validation_leases_a_key_in_any_state_but_revoked(state: KeyState) -> None:
    """A test call is what brings a key out of these states."""
    purpose = ValidationPurpose("1", Principal(owner_id="owner-1"))
    assert select_for_validation(purpose, key("1", state=state), [], NO_HALTS).key.key.state is state


def test_a_test_call_is_limited_by_the_account_of_the_owners_agents() -> None:
    """A binding of the key's own agent, or of any agent of its owner; without one, the owner's own account."""
    organization = Account(AccountKind.ORGANIZATION, "org-1")
    bound = replace(BINDING, binding=replace(BINDING.binding, account=organization))
    purpose = ValidationPurpose("1", Principal(owner_id="owner-1"))
    strangers = [stored_binding("agent-2"), stored_binding("agent-1", "owner-2")]
    of_agent = key("1", holder=agent_holder())
    assert select_for_validation(purpose, of_agent, [*strangers, bound], NO_HALTS).account == organization
    assert select_for_validation(purpose, of_agent, strangers, NO_HALTS).account == owner_account("owner-1")
    assert select_for_validation(purpose, key("1"), [strangers[1], bound], NO_HALTS).account == organization
    assert select_for_validation(purpose, key("1"), [], NO_HALTS).account == owner_account("owner-1")


def test_validation_of_anothers_key_finds_nothing() -> None:
    """Missing and another owner's are told alike, revoked is told to its owner."""
    purpose = ValidationPurpose("1", Principal(owner_id="owner-2"))
    for found in (None, key("1")):
        with pytest.raises(ProviderKeyNotFoundError):
            select_for_validation(purpose, found, [BINDING], NO_HALTS)
    with pytest.raises(ProviderKeyRevokedError):
        select_for_validation(
            ValidationPurpose("1", Principal(owner_id="owner-1")), key("1", state=KeyState.REVOKED), [], NO_HALTS
        )


ORGANIZATION = Account(AccountKind.ORGANIZATION, "org-1")
BOUND = replace(BINDING, binding=replace(BINDING.binding, account=ORGANIZATION))
OF_ORGANIZATION = Holder(Scope.ORGANIZATION, ORGANIZATION)


def share(key_id: str = "1", **changes: Any) -> StoredShare:
    """Return a share of a key with the bound agent, for chat."""
    usual: dict[str, Any] = {
        "provider_key_id": key_id,
        "agent_id": "agent-1",
        "organization_id": "org-1",
        "operations": (Operation.CHAT,),
        "cap": NO_CAP,
        "is_ended": False,
        "create_time": NOW,
    }
    return StoredShare(KeyShare(**(usual | changes)), RowSeal(7, 1, bytes(32)))


def choose_shared(
    *keys: StoredKey, shares: list[StoredShare], binding: StoredBinding = BOUND, halts: StoredHalts = NO_HALTS
) -> Selection | NoUsableKey:
    """Select for an agent of an organization."""
    judge = Judge(item=ITEM, operation=Operation.CHAT, can_serve=lambda *_: True, now=NOW)
    return select(judge, candidates=agents_keys(binding, keys, shares), binding=binding, halts=halts)


def test_a_shared_key_comes_after_the_agents_and_the_owners() -> None:
    """AGENT, OWNER, ORGANIZATION, whatever the priorities are; the share goes with the selection."""
    shared = key("1", holder=OF_ORGANIZATION, priority=0)
    found = choose_shared(shared, key("2"), shares=[share()])
    assert isinstance(found, Selection)
    assert (found.key.key.provider_key_id, found.share) == ("2", None)
    found = choose_shared(shared, shares=[share()])
    assert isinstance(found, Selection)
    assert (found.key, found.share, found.share_index, found.account) == (shared, share(), 7, ORGANIZATION)


WORTHLESS_SHARES = {
    "of another agent": share(agent_id="agent-2"),
    "of another key": share("2"),
    "of another organization": share(organization_id="org-2"),
    "ended": share(is_ended=True),
}


@pytest.mark.parametrize("worthless", WORTHLESS_SHARES.values(), ids=WORTHLESS_SHARES)
def test_a_key_of_an_organization_needs_a_share_in_force(worthless: StoredShare) -> None:
    """Same key, same agent, same organization, not ended; without one there is no key at all."""
    found = choose_shared(key("1", holder=OF_ORGANIZATION), shares=[worthless])
    assert isinstance(found, NoUsableKey)
    assert found.cause is NoKeyCause.NO_KEY


def test_a_share_is_of_no_use_to_an_agent_of_another_account() -> None:
    """The account decides, also when the share stands."""
    found = choose_shared(key("1", holder=OF_ORGANIZATION), shares=[share()], binding=BINDING)
    assert isinstance(found, NoUsableKey)


def test_a_share_that_does_not_cover_the_operation_is_a_key_for_others() -> None:
    """There is a key, but not for this operation."""
    narrow = share(operations=(Operation.EMBEDDING_GENERATION,))
    found = choose_shared(key("1", holder=OF_ORGANIZATION), shares=[narrow])
    assert isinstance(found, NoUsableKey)
    assert found.cause is NoKeyCause.NO_KEY_FOR_OPERATION


def halts(*scopes: HaltScope) -> StoredHalts:
    """Return a set of halts by an operator."""
    made = [
        Halt(halt_id=scope.label, scope=scope, reason="x", actor="x", owner_id="", create_time=NOW) for scope in scopes
    ]
    return StoredHalts.of(HaltSet(tuple(made)), RowSeal(9, 1, bytes(32)))


AGENT_SCOPES = [
    HaltScope(HaltKind.EVERYTHING),
    HaltScope(HaltKind.AGENT, "agent-1"),
    HaltScope(HaltKind.OWNER, "owner-1"),
    HaltScope(HaltKind.ORGANIZATION, "org-1"),
    HaltScope(HaltKind.PROVIDER, "anthropic"),
]
OTHER_SCOPES = [
    HaltScope(HaltKind.AGENT, "agent-2"),
    HaltScope(HaltKind.OWNER, "agent-1"),
    HaltScope(HaltKind.ORGANIZATION, "owner-1"),
    HaltScope(HaltKind.PROVIDER, "openai"),
    HaltScope(HaltKind.PLATFORM),
]


@pytest.mark.parametrize("scope", AGENT_SCOPES, ids=lambda scope: scope.label)
def test_a_halt_of_what_the_agent_belongs_to_stops_it(scope: HaltScope) -> None:
    """Also without any key: "no key" would let the platform pay. A halted provider alone needs a key to be there."""
    with pytest.raises(HaltedError) as halted:
        choose_shared(key("1"), shares=[], halts=halts(*OTHER_SCOPES, scope))
    assert halted.value.facts == {"halt_scope": scope.label}
    if scope.kind is not HaltKind.PROVIDER:
        with pytest.raises(HaltedError):
            choose_shared(shares=[], halts=halts(scope))


def test_halts_of_others_stop_nothing() -> None:
    """Scopes are told apart by kind and name."""
    assert isinstance(choose_shared(key("1"), shares=[], halts=halts(*OTHER_SCOPES)), Selection)


@pytest.mark.parametrize(
    "changes",
    [{}, {"cool_down_until": NOW + timedelta(seconds=9)}],
    ids=["a working key", "a resting key"],
)
def test_what_comes_after_a_halted_key_does_not_take_its_place(changes: dict[str, Any]) -> None:
    """Also when the halted one rests or was tried: the next key is not what was asked for."""
    stopped = halts(HaltScope(HaltKind.PROVIDER, "anthropic"))
    judge = Judge(
        item=replace(ITEM, excluded_key_ids=frozenset({"1"})),
        operation=Operation.CHAT,
        can_serve=lambda *_: True,
        now=NOW,
    )
    candidates = agents_keys(BINDING, [key("1", **changes), key("2", provider="openai")])
    with pytest.raises(HaltedError):
        select(judge, candidates=candidates, binding=BINDING, halts=stopped)
    first = agents_keys(BINDING, [key("1", priority=500, **changes), key("2", provider="openai")])
    assert isinstance(select(judge, candidates=first, binding=BINDING, halts=stopped), Selection)


def test_a_halt_of_the_platform_stops_its_keys_alone() -> None:
    """A platform item needs no agent; an agent needs no platform."""
    judge = Judge(item=ITEM, operation=Operation.CHAT, can_serve=lambda *_: True, now=NOW)
    candidates = platform_keys([key("1", holder=Holder(Scope.PLATFORM, PLATFORM))])
    for scope in (HaltScope(HaltKind.PLATFORM), HaltScope(HaltKind.EVERYTHING)):
        with pytest.raises(HaltedError):
            select(judge, candidates=candidates, binding=None, halts=halts(scope))
    found = select(judge, candidates=candidates, binding=None, halts=halts(*AGENT_SCOPES[1:4]))
    assert isinstance(found, Selection)


def test_a_key_past_its_time_is_not_leased_whatever_its_state_says() -> None:
    """It ends at that very moment; a test call of it is still possible."""
    expired = key("1", expire_time=NOW)
    found = choose(expired)
    assert isinstance(found, NoUsableKey)
    assert found.cause is NoKeyCause.NO_USABLE_KEY
    assert chosen_id(key("1", expire_time=NOW + timedelta(microseconds=1))) == "1"
    purpose = ValidationPurpose("1", Principal(owner_id="owner-1"))
    assert select_for_validation(purpose, expired, [], NO_HALTS).key is expired


@pytest.mark.parametrize(
    ("scope", "stops"),
    [
        (HaltScope(HaltKind.EVERYTHING), True),
        (HaltScope(HaltKind.PROVIDER, "anthropic"), True),
        (HaltScope(HaltKind.OWNER, "owner-1"), True),
        (HaltScope(HaltKind.AGENT, "agent-1"), True),
        (HaltScope(HaltKind.AGENT, "agent-2"), False),
        (HaltScope(HaltKind.OWNER, "owner-2"), False),
        (HaltScope(HaltKind.PLATFORM), False),
    ],
)
def test_test_calls_are_stopped_too(scope: HaltScope, *, stops: bool) -> None:
    """A key of a halted agent, owner or provider is not even tested."""
    purpose = ValidationPurpose("1", Principal(owner_id="owner-1"))
    of_agent = key("1", holder=agent_holder())
    if stops:
        with pytest.raises(HaltedError):
            select_for_validation(purpose, of_agent, [BINDING], halts(scope))
    else:
        assert select_for_validation(purpose, of_agent, [BINDING], halts(scope)).key is of_agent


def test_a_member_tests_the_organizations_key_on_its_account() -> None:
    """Whoever is not asserted a member finds none."""
    shared = key("1", holder=OF_ORGANIZATION)
    member = Principal(owner_id="owner-1", organization_ids=frozenset({"org-1"}))
    selection = select_for_validation(ValidationPurpose("1", member), shared, [], NO_HALTS)
    assert (selection.account, selection.owner_id, selection.binding_index) == (ORGANIZATION, "owner-1", 0)
    with pytest.raises(HaltedError):
        select_for_validation(
            ValidationPurpose("1", member), shared, [], halts(HaltScope(HaltKind.ORGANIZATION, "org-1"))
        )
    stranger = Principal(owner_id="owner-1", organization_ids=frozenset({"org-2"}))
    with pytest.raises(ProviderKeyNotFoundError):
        select_for_validation(ValidationPurpose("1", stranger), shared, [], NO_HALTS)


def test_a_caller_cannot_drain_the_vault() -> None:
    """The bound is on distinct keys of one caller within a minute, and slides."""
    bound = DistinctKeyBound(keys_max=2)
    bound.admit("a", "1", 0.0)
    bound.admit("a", "2", 10.0)
    bound.admit("a", "1", 20.0)
    bound.admit("b", "3", 20.0)
    with pytest.raises(LeaseBoundReachedError) as caught:
        bound.admit("a", "3", 30.0)
    assert caught.value.retry_after == timedelta(seconds=40)
    bound.admit("a", "3", 70.5)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40)), max_size=60))
def test_no_minute_holds_more_distinct_keys_than_the_bound(steps: list[tuple[int, int]]) -> None:
    """Whatever the history, admitted leases of any minute name at most so many keys."""
    bound, now, admitted = DistinctKeyBound(keys_max=3), 0.0, []
    for name, delay in steps:
        now += delay
        try:
            bound.admit("a", str(name), now)
        except LeaseBoundReachedError:
            continue
        admitted.append((now, name))
    for start, _ in admitted:
        assert len({name for at, name in admitted if start <= at < start + 60}) <= 3

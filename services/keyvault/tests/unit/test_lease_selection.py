"""Which key a lease is granted on."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvault.domain.authority import RowSeal
from keyvault.domain.errors import (
    AgentNotFoundError,
    LeaseBoundReachedError,
    ProviderKeyNotFoundError,
    ProviderKeyRevokedError,
)
from keyvault.domain.halts import HaltSet, StoredHalts
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
from services.keyvault.tests.unit.builders import NOW, agent_holder, owner_holder, stored_binding, stored_key

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

"""Money, ids, limits, policy: the rules that need no store."""

from datetime import UTC, datetime
from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.domain.accounts import PARTITIONS, AccountKey, account_key, check_identifier, partition_of
from metering.domain.enums import (
    AccountKind,
    EntryKind,
    Leg,
    Operation,
    Payer,
    PlatformCause,
    ScopeKind,
    Unit,
    Window,
)
from metering.domain.errors import AccountNotFoundError, CapReachedError, PlatformNotPayingError
from metering.domain.ledger import entry_id, leg_id, reservation_id
from metering.domain.limits import OWN_PAYERS, LimitDenial, Scope, default_cost_cap
from metering.domain.money import AMOUNT_MAX, TOKENS_PER_PRICE, check_amount, output_cost
from metering.domain.policy import Phase, Policy, decide_payer
from metering.domain.principals import Principal, ensure_may_see
from servicekit.errors import InvalidArgumentError
from servicekit.ids import new_uuid7, uuid7_time

REQUEST = new_uuid7(datetime(2026, 1, 15, tzinfo=UTC))
OWNER = account_key(AccountKind.OWNER, "a")


@given(tokens=st.integers(0, 10**9), price=st.integers(0, 10**13))
def test_output_cost_never_rounds_down(tokens: int, price: int) -> None:
    """What is held covers what is billed, by less than one nano-USD more."""
    cost = output_cost(tokens, price)
    assert 0 <= cost * TOKENS_PER_PRICE - tokens * price < TOKENS_PER_PRICE


@pytest.mark.parametrize("value", [-1, AMOUNT_MAX + 1])
def test_amounts_that_a_script_cannot_hold_are_refused(value: int) -> None:
    """2^53 − 1 is the most that counts exactly."""
    check_amount(AMOUNT_MAX, "amount")
    with pytest.raises(InvalidArgumentError):
        check_amount(value, "amount")


def test_ids_differ_by_attempt_account_leg_and_kind_and_keep_the_requests_time() -> None:
    """One key for two things would drop the second."""
    accounts = [OWNER, account_key(AccountKind.ORGANIZATION, "a")]
    legs = [leg_id(REQUEST, attempt, account, leg) for attempt, account, leg in product((1, 2), accounts, Leg)]
    entries = [entry_id(leg, kind) for leg in legs for kind in EntryKind]
    assert len({*legs, *entries}) == len(legs) + len(entries) == 8 + 24
    assert {uuid7_time(each) for each in [*legs, *entries]} == {uuid7_time(REQUEST)}
    assert reservation_id(REQUEST, 1, OWNER) == leg_id(REQUEST, 1, OWNER, Leg.ACCOUNT)


@given(identifier=st.text(min_size=1, max_size=128))
def test_every_account_has_one_partition(identifier: str) -> None:
    """Whatever the id, and never another one."""
    account = account_key(AccountKind.OWNER, identifier)
    assert 0 <= partition_of(account) < PARTITIONS
    assert partition_of(account) == partition_of(AccountKey(str(account)))


@pytest.mark.parametrize("value", ["", " ", "a b", "a\n", "\0", "x" * 129, "\x7f"])
def test_identifiers_are_printable_and_without_spaces(value: str) -> None:
    """Ids are the platform's own, and go into keys."""
    with pytest.raises(InvalidArgumentError):
        check_identifier(value, "agent_id")
    check_identifier("böse-{braces}-🙂", "agent_id")


def test_a_limit_is_the_same_by_what_makes_it_unique_and_nothing_else() -> None:
    """Setting it again changes its amount; another dimension is another limit."""
    limit = default_cost_cap(OWNER, 5)
    same = msgspec.structs.replace(limit, amount=6, is_hard=False, slot=9, version=3, is_default=False)
    assert limit.limit_id == same.limit_id
    others = [
        msgspec.structs.replace(limit, account=account_key(AccountKind.ORGANIZATION, "a")),
        msgspec.structs.replace(limit, scope=Scope(ScopeKind.AGENT, "a")),
        msgspec.structs.replace(limit, scope=Scope(ScopeKind.OWNER, "a")),
        msgspec.structs.replace(limit, operation=Operation.CHAT),
        msgspec.structs.replace(limit, unit=Unit.CALLS),
        msgspec.structs.replace(limit, window=Window.HOUR),
        msgspec.structs.replace(limit, payers=frozenset({Payer.PLATFORM})),
    ]
    assert len({limit.limit_id, *(other.limit_id for other in others)}) == 8
    assert limit.payers == OWN_PAYERS


def test_of_several_limits_the_one_that_lasts_longest_is_named() -> None:
    """A caller must wait for that one; the others are told too."""
    days = [
        LimitDenial(
            limit_id=f"lim_{day}",
            unit=Unit.CALLS,
            window=Window.DAY,
            operation=0,
            amount=5,
            used=7,
            requested=1,
            reset_time=datetime(2026, 1, day, tzinfo=UTC),
            scope="account:a",
        )
        for day in (3, 9, 5)
    ]
    error = CapReachedError(days)
    assert error.facts["limit_id"] == "lim_9"
    assert error.facts["reset_time"] == "2026-01-09T00:00:00Z"
    assert error.facts["remaining"] == 0
    assert error.retry_after is None
    assert [violation.quota_id for violation in error.quota] == ["lim_3", "lim_9", "lim_5"]


POLICY_CASES = [
    (Policy(), Payer.OWNER, Operation.CHAT, None, "owner_key"),
    (Policy(), Payer.ORGANIZATION, Operation.CHAT, None, "organization_key"),
    (Policy(), Payer.PLATFORM, Operation.GUARDRAIL_EVALUATION, PlatformCause.NO_KEY, None),
    (Policy(phase=Phase.OPTIONAL), Payer.PLATFORM, Operation.CHAT, PlatformCause.NO_KEY, "phase_optional"),
    (Policy(phase=Phase.ENCOURAGED), Payer.PLATFORM, Operation.CHAT, PlatformCause.NO_USABLE_KEY, "phase_encouraged"),
    (Policy(phase=Phase.OPTIONAL), Payer.PLATFORM, Operation.KEY_VALIDATION, PlatformCause.NO_KEY, None),
    (
        Policy(phase=Phase.SUNSET),
        Payer.PLATFORM,
        Operation.KEY_VALIDATION,
        PlatformCause.OPERATION_IS_PLATFORMS,
        "platform_key",
    ),
    (Policy(phase=Phase.OPTIONAL), Payer.PLATFORM, Operation.CHAT, PlatformCause.CALLER_REQUESTED, None),
    (Policy(phase=Phase.SUNSET), Payer.PLATFORM, Operation.CHAT, PlatformCause.NO_KEY, None),
    (
        Policy(phase=Phase.SUNSET, pays_caller_requests=True),
        Payer.PLATFORM,
        Operation.GUARDRAIL_EVALUATION,
        PlatformCause.CALLER_REQUESTED,
        "platform_caller_requested",
    ),
    (
        Policy(pays_caller_requests=True),
        Payer.PLATFORM,
        Operation.GUARDRAIL_EVALUATION,
        PlatformCause.NO_KEY,
        None,
    ),
    (
        Policy(pays_embedding_fallback=True),
        Payer.PLATFORM,
        Operation.EMBEDDING_GENERATION,
        PlatformCause.NO_KEY_FOR_OPERATION,
        "platform_embedding_fallback",
    ),
    (
        Policy(pays_evidence=True),
        Payer.PLATFORM,
        Operation.EVIDENCE_VERIFICATION,
        PlatformCause.NO_KEY,
        "platform_evidence",
    ),
    (Policy(), Payer.PLATFORM, Operation.SAFETY_ESCALATION, PlatformCause.OPERATION_IS_PLATFORMS, None),
]


@pytest.mark.parametrize(("policy", "payer", "operation", "cause", "rule"), POLICY_CASES)
def test_the_payer_is_decided_by_policy(
    policy: Policy, payer: Payer, operation: Operation, cause: PlatformCause | None, rule: str | None
) -> None:
    """Every decision names its rule; the platform's money needs permission."""
    if rule is None:
        with pytest.raises(PlatformNotPayingError) as refused:
            decide_payer(policy, payer=payer, operation=operation, cause=cause)
        assert refused.value.facts["rule"] == f"phase_{policy.phase.name.lower()}"
    else:
        assert decide_payer(policy, payer=payer, operation=operation, cause=cause) == rule


def test_a_principal_sees_its_own_accounts_only() -> None:
    """Owners by their id, members by what the caller asserts, operators everything."""
    member = Principal(owner_id="a", organization_ids=("org",))
    organization = account_key(AccountKind.ORGANIZATION, "org")
    ensure_may_see(member, OWNER)
    ensure_may_see(member, organization)
    ensure_may_see(Principal(operator_id="root"), account_key(AccountKind.PLATFORM))
    for stranger, account in (
        (Principal(owner_id="b"), OWNER),
        (Principal(owner_id="org"), organization),
        (member, account_key(AccountKind.PLATFORM)),
        (member, account_key(AccountKind.ORGANIZATION, "a")),
    ):
        with pytest.raises(AccountNotFoundError):
            ensure_may_see(stranger, account)

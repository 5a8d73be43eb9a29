"""The protocol holds in random histories, and each of its rules is needed."""

import pytest

from services.metering.tests.model.history import History
from services.metering.tests.model.rules import Rule, Rules
from services.metering.tests.model.world import BrokenPromiseError

HISTORIES = 1_000
# A rule that nothing misses in this many histories is no rule, or the model does not see what it is for.
SEARCHED_MAX = 5_000

_RESERVES = {"start_job", "deliver", "deliver_reply"}
_FLUSHES = {"read_batch", "commit_batch", "renew"}
# What a history must do often for a rule to be missed soon.
OFTEN: dict[Rule, set[str]] = {
    Rule.TIME_NEVER_GOES_BACK: _RESERVES | {"pass_window", "jump_clock", "renew"},
    Rule.IDENTITY_IS_CHECKED: _RESERVES | {"restart_redis", "renew", "call_provider"},
    Rule.LIMITS_APPLY_UPWARD: _RESERVES | {"change_limit", "apply_limit", "renew"},
    Rule.GENERATION_IS_IN_WATERMARKS: _RESERVES | _FLUSHES | {"call_provider", "restart_redis", "rebuild"},
    Rule.LICENCES_ARE_WAITED_OUT: _RESERVES | {"split_redis", "rebuild", "renew", "call_provider"},
    Rule.LICENCE_IS_CHECKED_AFTER: _RESERVES | {"split_redis", "rebuild", "renew", "advance"},
    Rule.REBUILD_LOADS_SUSPENSE: _RESERVES | _FLUSHES | {"expire", "advance", "restart_redis", "rebuild"},
    Rule.LOAD_IS_OVERTAKEN: _RESERVES | _FLUSHES | {"begin_fold", "end_fold", "call_provider"},
    Rule.OLD_IDS_ARE_LOOKED_UP: _RESERVES | _FLUSHES | {"forget", "advance", "duplicate", "call_provider"},
    Rule.OFFSET_IS_FENCED: _RESERVES | _FLUSHES | {"call_provider"},
}
NEVER: dict[Rule, set[str]] = {
    Rule.GENERATION_IS_IN_WATERMARKS: {"settle_again", "kill_router", "duplicate"},
    Rule.TIME_NEVER_GOES_BACK: {"restart_redis", "split_redis", "kill_router"},
    Rule.IDENTITY_IS_CHECKED: {"rebuild", "split_redis"},
}
# The ledger's own barriers: they are reached when a settlement that Redis has forgotten comes again unrecognized.
BEHIND_THE_LOOK_UP = (Rule.ENTRY_ID_ALONE_IS_THE_KEY, Rule.SUMS_COUNT_WHAT_WAS_INSERTED)
FORGETFUL = frozenset(OFTEN[Rule.OLD_IDS_ARE_LOOKED_UP])


def test_with_all_rules_every_history_holds() -> None:
    """No cap is exceeded, nothing is lost, nothing is counted twice."""
    for seed in range(HISTORIES):
        history = History(seed, Rules())
        history.run()
        history.audit()


@pytest.mark.parametrize(
    "rule", [rule for rule in Rule if rule not in BEHIND_THE_LOOK_UP], ids=lambda rule: rule.name.lower()
)
def test_without_one_rule_some_history_breaks(rule: Rule) -> None:
    """Taking any one rule out lets some history break a promise."""
    for seed in range(SEARCHED_MAX):
        history = History(
            seed,
            Rules(frozenset({rule})),
            often=frozenset(OFTEN.get(rule, ())),
            never=frozenset(NEVER.get(rule, ())),
        )
        try:
            history.run()
            history.audit()
        except BrokenPromiseError:
            return
    pytest.fail(f"no history misses this rule: {rule.value}")


def test_the_ledger_counts_once_even_what_redis_takes_for_new() -> None:
    """With the look-up out, counters are wrong and operations may be bought twice; no entry is made twice."""
    recognized = 0
    for seed in range(400):
        history = History(seed, Rules(frozenset({Rule.OLD_IDS_ARE_LOOKED_UP})), often=FORGETFUL)
        try:
            history.run()
        except BrokenPromiseError:
            continue
        history.audit_ledger()
        recognized += 1
    assert recognized > 200


@pytest.mark.parametrize("rule", BEHIND_THE_LOOK_UP, ids=lambda rule: rule.name.lower())
def test_the_ledgers_barriers_are_needed_behind_the_look_up(rule: Rule) -> None:
    """With the look-up out, taking one of the ledger's own barriers out makes entries or sums count twice."""
    for seed in range(SEARCHED_MAX):
        history = History(seed, Rules(frozenset({Rule.OLD_IDS_ARE_LOOKED_UP, rule})), often=FORGETFUL)
        try:
            history.run()
        except BrokenPromiseError:
            continue
        try:
            history.audit_ledger()
        except BrokenPromiseError:
            return
    pytest.fail(f"no history misses this rule: {rule.value}")

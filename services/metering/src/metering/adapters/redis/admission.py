"""Admission in Redis: commands become script calls, replies become outcomes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from typing_extensions import override

from metering.adapters.redis import keys
from metering.adapters.redis.connection import unavailable
from metering.adapters.redis.scripts import Script, ScriptCall, ScriptRunner
from metering.domain.accounts import AccountKey, partition_of
from metering.domain.enums import CallState, Leg, OperationState, Unit, Window
from metering.domain.ledger import LedgerFacts, leg_id
from metering.domain.licences import Licence
from metering.domain.limits import LimitDenial
from metering.domain.money import TOKENS_PER_PRICE
from metering.domain.reservations import (
    ATTEMPTS_MAX,
    AlreadySettled,
    CallClosed,
    Closed,
    Denied,
    ExtendCommand,
    Extended,
    ExtendOutcome,
    Fenced,
    Found,
    Granted,
    InProgress,
    LookupCommand,
    LookupOutcome,
    NeedsAccount,
    NeedsCalendar,
    NeedsHistory,
    NotHeld,
    PriorOperation,
    ReleaseCommand,
    Released,
    ReleaseOutcome,
    Repeat,
    ReserveCommand,
    ReserveOutcome,
    Reused,
    SettleCommand,
    Settled,
    SettleOutcome,
    TooManyAttempts,
    id_hour,
)
from metering.domain.windows import from_minutes
from metering.ports import AdmissionStore, History
from servicekit.errors import DomainError

_encode: Final = msgspec.msgpack.Encoder().encode
# A guess of the attempt is wrong only after a change of holder, and then Redis names the right one.
_GUESSES_MAX: Final = 3
_DENIAL_WORDS: Final = 9
_TAIL: Final = 8
_SCOPES: Final = {1: "account", 2: "owner", 3: "agent"}
_LAST_STATES: Final = {
    0: OperationState.UNKNOWN,
    CallState.SETTLED: OperationState.BILLED,
    CallState.RELEASED: OperationState.RELEASED,
    CallState.SUSPENSE: OperationState.SUSPENSE,
    CallState.POSTED: OperationState.SUSPENSE,
}

_Reply = list[Any]


class RedisAdmissionStore(AdmissionStore):
    """Runs each command as one script, a batch as one write."""

    def __init__(self, runner: ScriptRunner) -> None:
        """Run on a runner."""
        self._runner = runner
        self._reserve = Script.named("reserve")
        self._settle = Script.named("settle")
        self._release = Script.named("release")
        self._extend = Script.named("extend")
        self._lookup = Script.named("lookup")

    @override
    async def reserve(
        self, commands: Sequence[ReserveCommand], licence: Licence, *, histories: Mapping[int, History] | None = None
    ) -> list[ReserveOutcome | DomainError]:
        known = histories or {}

        def call(index: int, attempt: int) -> ScriptCall:
            return self._reserve_call(commands[index], licence, attempt=attempt, history=known.get(index))

        guesses = [_first_guess(command, known.get(i)) for i, command in enumerate(commands)]
        replies = await self._run_guessing(licence, call, guesses)
        return [
            reply if isinstance(reply, DomainError) else _reserve_outcome(reply, command)
            for reply, command in zip(replies, commands, strict=True)
        ]

    @override
    async def settle(
        self, commands: Sequence[SettleCommand], licence: Licence, *, histories: Mapping[int, History] | None = None
    ) -> list[SettleOutcome | DomainError]:
        known = histories or {}
        calls = [self._settle_call(command, licence, known.get(i)) for i, command in enumerate(commands)]
        replies = await self._runner.run(licence.identity, calls)
        if replies is None:
            return [Fenced()] * len(commands)
        return [reply if isinstance(reply, DomainError) else _settle_outcome(reply) for reply in replies]

    @override
    async def release(self, commands: Sequence[ReleaseCommand], licence: Licence) -> list[ReleaseOutcome | DomainError]:
        def call(index: int, attempt: int) -> ScriptCall:
            return self._release_call(commands[index], licence, attempt=attempt)

        replies = await self._run_guessing(licence, call, [command.attempt for command in commands])
        return [reply if isinstance(reply, DomainError) else _release_outcome(reply) for reply in replies]

    @override
    async def extend(self, commands: Sequence[ExtendCommand], licence: Licence) -> list[ExtendOutcome | DomainError]:
        replies = await self._runner.run(licence.identity, [self._extend_call(each, licence) for each in commands])
        if replies is None:
            return [Fenced()] * len(commands)
        return [reply if isinstance(reply, DomainError) else _extend_outcome(reply) for reply in replies]

    @override
    async def lookup(self, command: LookupCommand, licence: Licence) -> LookupOutcome:
        hour = id_hour(command.request_id)
        generation = licence.generations[partition_of(command.account)]
        arguments = (
            _encode([generation, hour]),
            b"",
            b"",
            keys.operation_field(command.request_id, command.account),
            command.body_hash[:16],
        )
        call = ScriptCall(self._lookup, call_keys(command.account, licence, hour), arguments)
        replies = await self._runner.run(licence.identity, [call])
        if replies is None:
            return Fenced()
        if isinstance(replies[0], DomainError):
            raise replies[0]
        return _lookup_outcome(replies[0])

    async def _run_guessing(
        self, licence: Licence, call: Callable[[int, int], ScriptCall], guesses: list[int]
    ) -> list[Any]:
        """Run a script for every guess of an attempt, and again for those that Redis corrects."""
        replies: list[Any] = [None] * len(guesses)
        open_items = list(range(len(guesses)))
        for _ in range(_GUESSES_MAX):
            batch = await self._runner.run(licence.identity, [call(i, guesses[i]) for i in open_items])
            if batch is None:
                batch = [[b"FENCED"]] * len(open_items)
            corrected = []
            for i, reply in zip(open_items, batch, strict=True):
                replies[i] = reply
                if not isinstance(reply, DomainError) and reply[0] == b"ATTEMPT":
                    guesses[i] = reply[1]
                    corrected.append(i)
            open_items = corrected
            if not open_items:
                return replies
        for i in open_items:
            replies[i] = unavailable("is contended for this operation")
        return replies

    def _reserve_call(
        self, command: ReserveCommand, licence: Licence, *, attempt: int, history: History | None
    ) -> ScriptCall:
        call, facts, estimate, account = command.call, command.facts, command.estimate, command.account
        hour = id_hour(call.request_id)
        # Of either leg, the facts name the account that the call is for.
        own = _own_account(facts, account)
        whole, rest = divmod(estimate.output_nano_usd_per_mtok, TOKENS_PER_PRICE)
        numbers = [
            licence.generations[partition_of(account)],
            call.call_index,
            attempt,
            hour,
            account,
            facts.agent_id,
            facts.owner_id,
            facts.operation,
            facts.payer,
            facts.payer_rule,
            estimate.input_tokens,
            estimate.fixed_cost_nano_usd,
            estimate.output_tokens_min,
            estimate.output_tokens_max,
            whole,
            rest,
            command.ttl_ms,
            ATTEMPTS_MAX,
            0 if history is None else 1,
            int(command.leg),
        ]
        numbered = facts if facts.attempt == attempt else msgspec.structs.replace(facts, attempt=attempt)
        arguments = (
            _encode(numbers),
            _encode(numbered),
            _prior_record(history),
            keys.operation_field(call.request_id, account),
            facts.body_hash,
            keys.id_bytes(call.holder),
            keys.id_bytes(leg_id(call.request_id, attempt, own, command.leg)),
        )
        return ScriptCall(self._reserve, call_keys(account, licence, hour), arguments)

    def _settle_call(self, command: SettleCommand, licence: Licence, history: History | None) -> ScriptCall:
        call, facts, account = command.call, command.facts, command.account
        hour = id_hour(call.request_id)
        numbers = [
            licence.generations[partition_of(account)],
            call.call_index,
            command.attempt,
            hour,
            account,
            facts.agent_id,
            facts.owner_id,
            facts.operation,
            facts.payer,
            facts.payer_rule,
            facts.input_tokens + facts.output_tokens,
            facts.cost_nano_usd,
            command.held_tokens,
            command.held_cost_nano_usd,
            int(command.is_final),
            int(command.in_suspense),
            command.reserve_ms,
            0 if history is None else 1,
            facts.leg,
        ]
        arguments = (
            _encode(numbers),
            _encode(facts),
            _prior_record(history),
            keys.operation_field(call.request_id, account),
            facts.body_hash,
            keys.id_bytes(call.holder),
            keys.id_bytes(command.reservation_id),
        )
        return ScriptCall(self._settle, call_keys(account, licence, hour), arguments)

    def _release_call(self, command: ReleaseCommand, licence: Licence, *, attempt: int) -> ScriptCall:
        call, account = command.call, command.account
        hour = id_hour(call.request_id)
        numbers = [
            licence.generations[partition_of(account)],
            call.call_index,
            attempt,
            hour,
            account,
            int(command.forgets),
        ]
        reservation = b""
        if attempt:
            reservation = keys.id_bytes(leg_id(call.request_id, attempt, command.for_account, command.leg))
        arguments = (
            _encode(numbers),
            b"",
            b"",
            keys.operation_field(call.request_id, account),
            b"",
            keys.id_bytes(call.holder),
            reservation,
        )
        return ScriptCall(self._release, call_keys(account, licence, hour), arguments)

    def _extend_call(self, command: ExtendCommand, licence: Licence) -> ScriptCall:
        hour = id_hour(command.reservation_id)
        numbers = [licence.generations[partition_of(command.account)], hour, command.account, command.ttl_ms]
        arguments = (
            _encode(numbers),
            b"",
            b"",
            keys.operation_field(command.call.request_id, command.account),
            b"",
            b"",
            keys.id_bytes(command.reservation_id),
        )
        return ScriptCall(self._extend, call_keys(command.account, licence, hour), arguments)


def call_keys(account: AccountKey, licence: Licence, hour: int) -> tuple[bytes, ...]:
    """Return the keys that every script about a call declares: all in one slot."""
    partition = partition_of(account)
    generation = licence.generations[partition]
    return (
        keys.meta_key(partition),
        keys.outbox_key(partition, generation),
        keys.due_key(partition, generation),
        keys.account_hash_key(account, generation),
        keys.bucket_key(partition, generation, hour),
    )


def operation_record(prior: PriorOperation) -> bytes:
    """Return the operation record that Redis would have, from what Postgres knows."""
    count = max((each.attempt for each in prior.attempts), default=0)
    by_attempt = {each.attempt: each for each in prior.attempts}
    holder = keys.id_bytes(prior.attempts[-1].holder) if prior.attempts else b"\0" * 16
    # Whatever closed it is durable: -1.
    values: list[int | str | bytes] = [prior.body_hash, holder, -1 if prior.is_final else 0, 1 if prior.attempts else 0]
    for number in range(1, count + 1):
        each = by_attempt.get(number)
        if each is None:
            values += [b"", -1, 0, 0, 0]
        else:
            tail = keys.id_bytes(each.holder)[_TAIL:]
            values += [tail, each.call_index, int(each.state), each.cost_nano_usd, each.tokens]
    return keys.pack_record(values)


def _prior_record(history: History | None) -> bytes:
    return b"" if history is None or history.operation is None else operation_record(history.operation)


def _first_guess(command: ReserveCommand, history: History | None) -> int:
    if history is not None and history.operation is not None:
        return max((each.attempt for each in history.operation.attempts), default=0) + 1
    return min(command.call.call_index + 1, ATTEMPTS_MAX)


def _own_account(facts: LedgerFacts, account: AccountKey) -> AccountKey:
    return AccountKey(facts.for_account) if facts.leg == Leg.PLATFORM else account


def _reserve_outcome(reply: _Reply, command: ReserveCommand) -> ReserveOutcome:
    word = reply[0]
    if word == b"GRANTED":
        return Granted(*reply[1:8])
    if word == b"DENIED":
        return Denied(tuple(_denials(reply[2:], command)))
    return _REFUSALS[word](reply)


def _denials(words: list[Any], command: ReserveCommand) -> list[LimitDenial]:
    found = []
    for i in range(0, len(words), _DENIAL_WORDS):
        limit_id, scope, unit, window, operation, amount, used, requested, end = words[i : i + _DENIAL_WORDS]
        names = {1: command.account[2:], 2: command.facts.owner_id, 3: command.facts.agent_id}
        found.append(
            LimitDenial(
                limit_id=limit_id.decode(),
                unit=Unit(unit),
                window=Window(window),
                operation=operation,
                amount=amount,
                used=used,
                requested=requested,
                reset_time=from_minutes(end),
                scope=f"{_SCOPES[scope]}:{names[scope]}",
            )
        )
    return found


_REFUSALS: Final[dict[bytes, Callable[[_Reply], ReserveOutcome]]] = {
    b"FINAL": lambda reply: Closed(reply[1], reply[2]),
    b"CLOSED": lambda reply: CallClosed(CallState(reply[1])),
    b"IN_PROGRESS": lambda reply: InProgress(reply[1]),
    b"REUSED": lambda _: Reused(),
    b"ATTEMPTS": lambda _: TooManyAttempts(),
    b"NOT_LOADED": lambda _: NeedsAccount(),
    b"LOADING": lambda _: NeedsAccount(is_loading=True),
    b"ROLL": lambda reply: NeedsCalendar(reply[1]),
    b"CHECK": lambda _: NeedsHistory(),
    b"FENCED": lambda _: Fenced(),
}


def _settle_outcome(reply: _Reply) -> SettleOutcome:
    word = reply[0]
    if word == b"SETTLED":
        return Settled(reply[1], reply[2])
    if word == b"REPEAT":
        return Repeat(reply[1], reply[2], reply[3])
    return NeedsHistory() if word == b"CHECK" else Fenced()


def _release_outcome(reply: _Reply) -> ReleaseOutcome:
    word = reply[0]
    if word == b"RELEASED":
        return Released(reply[2], bool(reply[1]), reply[3])
    return AlreadySettled() if word == b"ALREADY_SETTLED" else Fenced()


def _extend_outcome(reply: _Reply) -> ExtendOutcome:
    word = reply[0]
    if word == b"EXTENDED":
        return Extended(reply[1])
    return NotHeld() if word == b"CLOSED" else Fenced()


def _lookup_outcome(reply: _Reply) -> LookupOutcome:
    word = reply[0]
    found: dict[bytes, Callable[[], LookupOutcome]] = {
        b"UNKNOWN": lambda: Found(OperationState.UNKNOWN),
        b"CHECK": NeedsHistory,
        b"REUSED": Reused,
        b"FENCED": Fenced,
        b"FINAL": lambda: Found(OperationState.FINAL, sequence=reply[1], attempts=reply[2]),
        b"HELD": lambda: Found(OperationState.HELD, holder=keys.id_text(reply[1]), expire_ms=reply[2]),
        b"LAST": lambda: Found(_LAST_STATES[reply[1]]),
    }
    return found[word]()

"""The closed lists that the domain counts by. Numbers are stored and go into scripts: they never change."""

from enum import IntEnum


class AccountKind(IntEnum):
    """What kind of account it is."""

    OWNER = 1
    ORGANIZATION = 2
    PLATFORM = 3


class Payer(IntEnum):
    """Whose provider key a call uses, and so who pays the provider."""

    OWNER = 1
    ORGANIZATION = 2
    PLATFORM = 3


class Operation(IntEnum):
    """What an AI call is for."""

    GUARDRAIL_EVALUATION = 1
    EMBEDDING_GENERATION = 2
    TASK_DECOMPOSITION = 3
    EVIDENCE_VERIFICATION = 4
    SAFETY_ESCALATION = 5
    CHAT = 6
    KEY_VALIDATION = 7


class PlatformCause(IntEnum):
    """Why the platform is asked to pay."""

    NO_KEY = 1
    NO_KEY_FOR_OPERATION = 2
    NO_USABLE_KEY = 3
    OPERATION_IS_PLATFORMS = 4
    CALLER_REQUESTED = 5


class Unit(IntEnum):
    """What a limit counts."""

    CALLS = 1
    TOKENS = 2
    COST = 3


class Window(IntEnum):
    """How often a limit starts afresh."""

    MINUTE = 1
    HOUR = 2
    DAY = 3
    MONTH = 4


class ScopeKind(IntEnum):
    """What part of an account a limit applies to."""

    ACCOUNT = 1
    OWNER = 2
    AGENT = 3


class Leg(IntEnum):
    """Which account of a call a reservation is on: its own, or the platform's budget when the platform pays."""

    ACCOUNT = 0
    PLATFORM = 1


class CallState(IntEnum):
    """How far one attempt has come, as its operation record keeps it."""

    UNKNOWN = 0
    HELD = 1
    SETTLED = 2
    RELEASED = 3
    SUSPENSE = 4
    POSTED = 5


class OperationState(IntEnum):
    """How far an operation has come."""

    UNKNOWN = 1
    HELD = 2
    SUSPENSE = 3
    RELEASED = 4
    BILLED = 5
    FINAL = 6


class EntryKind(IntEnum):
    """What a ledger entry records."""

    SETTLEMENT = 1
    SUSPENSE = 2
    ADJUSTMENT = 3


class EventKind(IntEnum):
    """What an outbox record says."""

    RESERVED = 1
    SETTLED = 2
    RELEASED = 3
    SUSPENDED = 4
    POSTED = 5
    EXTENDED = 6

"""Who is limited and pays, and in which partition their counters live.

An account is named by one string, its *account key*, everywhere inside Metering: in Redis keys, in Postgres and in
memory. The kinds have prefixes of their own, so that an owner and an organization of the same id never meet.

    o:<owner id>    g:<organization id>    p:    (the platform)
"""

import hashlib
from datetime import datetime
from functools import lru_cache
from typing import Final, NewType

import msgspec

from metering.domain.enums import AccountKind
from servicekit.errors import FieldViolation, InvalidArgumentError

AccountKey = NewType("AccountKey", str)

# Fixed for ever: counters, watermarks and streams are laid out by it.
PARTITIONS: Final = 256
PLATFORM: Final = AccountKey("p:")
ID_LENGTH_MAX: Final = 128

_PREFIXES: Final = {AccountKind.OWNER: "o:", AccountKind.ORGANIZATION: "g:", AccountKind.PLATFORM: "p:"}
_KINDS: Final = {prefix: kind for kind, prefix in _PREFIXES.items()}


class Agent(msgspec.Struct, frozen=True):
    """An agent under the one account that it belongs to."""

    agent_id: str
    owner_id: str
    account: AccountKey
    binding_index: int
    register_time: datetime


class Account(msgspec.Struct, frozen=True):
    """Who is limited and pays."""

    account: AccountKey
    plan: str
    time_zone: str
    # Counts up with every change of what Redis must know: limits, plan, time zone. Applied only upward.
    config_version: int
    create_time: datetime


def account_key(kind: AccountKind, identifier: str = "") -> AccountKey:
    """Return the key of the account of this kind and id."""
    return AccountKey(_PREFIXES[kind] + identifier)


def account_kind(account: AccountKey) -> AccountKind:
    """Return the kind of an account."""
    return _KINDS[account[:2]]


def account_id(account: AccountKey) -> str:
    """Return the platform's own id of an account; empty for the platform."""
    return account[2:]


@lru_cache(maxsize=65_536)
def partition_of(account: AccountKey) -> int:
    """Return the partition that holds everything of an account."""
    return hashlib.sha256(account.encode()).digest()[0]


def check_identifier(value: str, field: str) -> None:
    """Check that a value can be one of the platform's own ids.

    Raises:
        InvalidArgumentError: It is empty, too long, or has characters that do not print.
    """
    if _is_identifier(value):
        return
    raise InvalidArgumentError(
        violations=[
            FieldViolation(
                field=field,
                reason="IDENTIFIER_MALFORMED",
                description=f"must be 1 to {ID_LENGTH_MAX} printable characters without spaces",
            )
        ]
    )


# The same ids come with every call of an agent.
@lru_cache(maxsize=65_536)
def _is_identifier(value: str) -> bool:
    return 1 <= len(value) <= ID_LENGTH_MAX and value.isprintable() and " " not in value

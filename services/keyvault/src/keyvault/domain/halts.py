"""The emergency stop: what is halted, by whom, and what a halt covers.

All halts that are in force are one authority row. With a row for each, deleting one would end a halt; here it leaves no
set at all, and without a set nothing is leased.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.authority import RowSeal
from keyvault.domain.canonical import CanonicalFormError, FieldReader, decode_fields, encode_fields
from keyvault.domain.errors import HaltedError
from keyvault.domain.new_keys import refused
from keyvault.domain.ownership import Account, AccountKind

if TYPE_CHECKING:
    from collections.abc import Iterable

RECORD_LABEL: Final = "byok/authority/v1/halt-set"
_HALT_LABEL: Final = "byok/authority/v1/halt"
ROW_ID: Final = "halts"
HALTS_MAX: Final = 1000
OWNERS_HALTS_MAX: Final = 900
"""Halts that owners made: room is kept for operators, whom no owner must be able to keep from stopping."""
HALTS_PER_OWNER_MAX: Final = 16
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class HaltKind(enum.IntEnum):
    """What kind of scope is halted. The numbers are stored: never renumber."""

    EVERYTHING = 1
    PROVIDER = 2
    ORGANIZATION = 3
    OWNER = 4
    AGENT = 5
    PLATFORM = 6


@dataclass(frozen=True, slots=True)
class HaltScope:
    """What is halted; EVERYTHING and PLATFORM have no name."""

    kind: HaltKind
    name: str = ""

    @property
    def label(self) -> str:
        """Return the scope as callers and the log are told of it."""
        return f"{self.kind.name.lower()}/{self.name}" if self.name else self.kind.name.lower()


EVERYTHING: Final = HaltScope(HaltKind.EVERYTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """One halt in force.

    `audit_index` is that of its entry; in the row that the halt was made by it is not known yet, and stands as 0.
    `owner_id` is the owner who asked; it is empty when an operator did.
    """

    halt_id: str
    scope: HaltScope
    reason: str
    actor: str
    owner_id: str
    create_time: datetime
    audit_index: int = 0

    @property
    def is_by_operator(self) -> bool:
        """Return whether an operator asked; only an operator can then resume."""
        return not self.owner_id


@dataclass(frozen=True, slots=True)
class HaltSet:
    """Every halt in force, oldest first."""

    halts: tuple[Halt, ...] = ()

    def find(self, halt_id: str) -> Halt | None:
        """Return the halt with this id."""
        return next((halt for halt in self.halts if halt.halt_id == halt_id), None)

    def standing(self, scope: HaltScope, *, is_by_operator: bool) -> Halt | None:
        """Return the halt that stands for this scope already. An owner's does not stand for an operator's."""
        return next(
            (halt for halt in self.halts if halt.scope == scope and halt.is_by_operator == is_by_operator), None
        )

    def with_halt(self, halt: Halt) -> HaltSet:
        """Return the set with one more halt.

        Raises:
            InvalidArgumentError: there is no room for it.
        """
        of_owners = [each for each in self.halts if not each.is_by_operator]
        own = [each for each in of_owners if each.owner_id == halt.owner_id]
        is_full = len(self.halts) >= HALTS_MAX
        if not halt.is_by_operator:
            is_full = len(of_owners) >= OWNERS_HALTS_MAX or len(own) >= HALTS_PER_OWNER_MAX
        if is_full:
            raise refused("scope", "TOO_MANY_HALTS", "Resume halts that are not needed, or halt a wider scope.")
        return HaltSet((*self.halts, halt))

    def without(self, halt_id: str) -> HaltSet:
        """Return the set without one halt."""
        return HaltSet(tuple(halt for halt in self.halts if halt.halt_id != halt_id))


@dataclass(frozen=True, slots=True)
class StoredHalts:
    """The set of halts with the seal that authenticates it, and what it covers, found fast."""

    halts: HaltSet
    seal: RowSeal
    covered: frozenset[HaltScope]

    @classmethod
    def of(cls, halts: HaltSet, seal: RowSeal) -> StoredHalts:
        """Return the set as it was stored, with every halt's own index."""
        known = tuple(halt if halt.audit_index else replace(halt, audit_index=seal.audit_index) for halt in halts.halts)
        return cls(HaltSet(known), seal, frozenset(halt.scope for halt in known))

    def ensure_none(self, scopes: Iterable[HaltScope]) -> None:
        """Raise HaltedError when one of `scopes`, or everything, is halted."""
        for scope in (EVERYTHING, *scopes):
            if scope in self.covered:
                message = "an emergency stop covers this; hold the content until it is resumed"
                raise HaltedError(message, halt_scope=scope.label)


def scope_of_account(account: Account) -> HaltScope:
    """Return the scope whose halt covers everything of `account`."""
    if account.kind is AccountKind.OWNER:
        return HaltScope(HaltKind.OWNER, account.party_id)
    if account.kind is AccountKind.ORGANIZATION:
        return HaltScope(HaltKind.ORGANIZATION, account.party_id)
    return HaltScope(HaltKind.PLATFORM)


def encode_halts(halts: HaltSet) -> bytes:
    """Return the canonical record of `halts`: what its authority HMAC covers, and what is stored."""
    return encode_fields(RECORD_LABEL, [_encode_halt(halt) for halt in halts.halts])


def decode_halts(record: bytes) -> HaltSet:
    """Return the set in a canonical record.

    Raises:
        CanonicalFormError: these bytes are not such a record.
    """
    try:
        return HaltSet(tuple(_decode_halt(each) for each in decode_fields(RECORD_LABEL, record)))
    except (ValueError, OverflowError) as error:
        message = "the record is not that of a set of halts"
        raise CanonicalFormError(message) from error


def _encode_halt(halt: Halt) -> bytes:
    return encode_fields(
        _HALT_LABEL,
        (
            halt.halt_id,
            int(halt.scope.kind),
            halt.scope.name,
            halt.reason,
            halt.actor,
            halt.owner_id,
            (halt.create_time - _EPOCH) // timedelta(microseconds=1),
            halt.audit_index,
        ),
    )


def _decode_halt(encoded: bytes) -> Halt:
    read = FieldReader(_HALT_LABEL, encoded)
    halt = Halt(
        halt_id=read.text(),
        scope=HaltScope(HaltKind(read.number()), read.text()),
        reason=read.text(),
        actor=read.text(),
        owner_id=read.text(),
        create_time=_EPOCH + timedelta(microseconds=read.number()),
        audit_index=read.number(),
    )
    read.end()
    return halt

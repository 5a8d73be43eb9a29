"""The share of an organization's key with one agent: what the key may be used for, and what may be spent through it.

A share that ended stays as a row that says so: an agent whose share was deleted has none, and so has one whose row says
that it ended. The index of the row is the version of its terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.authority import RowSeal
from keyvault.domain.canonical import CanonicalFormError, FieldReader, decode_fields, encode_fields, field_int
from keyvault.domain.new_keys import FieldChecks
from keyvault.domain.provider_keys import Operation

if TYPE_CHECKING:
    from collections.abc import Sequence

RECORD_LABEL: Final = "byok/authority/v1/key-share"
_LIST_LABEL: Final = "byok/authority/v1/list"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
CAP_MAX: Final = (1 << 63) - 1
_PARTIES: Final = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareCap:
    """What may be spent through one share; 0 means that this is not capped. Metering enforces it."""

    month_cost_nano_usd: int = 0
    day_cost_nano_usd: int = 0
    day_calls: int = 0


NO_CAP: Final = ShareCap()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyShare:
    """One agent's permission to use one key of an organization, or that it ended."""

    provider_key_id: str
    agent_id: str
    organization_id: str
    operations: tuple[Operation, ...]
    cap: ShareCap
    is_ended: bool
    create_time: datetime

    def covers(self, operation: Operation) -> bool:
        """Return whether the key may be used for `operation` through this share."""
        return not self.is_ended and operation in self.operations


@dataclass(frozen=True, slots=True)
class StoredShare:
    """A share with the seal that authenticates it."""

    share: KeyShare
    seal: RowSeal

    @property
    def terms_index(self) -> int:
        """Return the version of its terms: the index of the audit entry that wrote them."""
        return self.seal.audit_index


def share_name(provider_key_id: str, agent_id: str) -> str:
    """Return what a share is called in the log and in reports."""
    return f"{provider_key_id}{_PARTIES}{agent_id}"


def share_parties(name: str) -> tuple[str, str]:
    """Return the key and the agent of a share's name. The id of a key is ours, and holds no separator."""
    provider_key_id, _, agent_id = name.partition(_PARTIES)
    return provider_key_id, agent_id


def check_terms(operations: Sequence[Operation], cap: ShareCap) -> tuple[Operation, ...]:
    """Return the operations in the order of their numbers.

    Raises:
        InvalidArgumentError: naming each field that does not fit.
    """
    checks = FieldChecks()
    if not operations:
        checks.complain("operations", "REQUIRED", "Name at least one operation that the key may be used for.")
    if len(set(operations)) != len(operations):
        checks.complain("operations", "OPERATION_REPEATED", "Name each operation once.")
    if Operation.KEY_VALIDATION in operations:
        remedy = "Leave KEY_VALIDATION out: members of the organization test its keys, not agents."
        checks.complain("operations", "OPERATION_NOT_SHARED", remedy)
    for field in ShareCap.__slots__:
        if not 0 <= getattr(cap, field) <= CAP_MAX:
            checks.complain(f"cap.{field}", "OUT_OF_RANGE", "Send 0 or more; 0 means that this is not capped.")
    checks.conclude()
    return tuple(sorted(operations))


def encode_share(share: KeyShare) -> bytes:
    """Return the canonical record of `share`: what its authority HMAC covers, and what is stored."""
    return encode_fields(
        RECORD_LABEL,
        (
            share.provider_key_id,
            share.agent_id,
            share.organization_id,
            encode_fields(_LIST_LABEL, [int(operation) for operation in share.operations]),
            share.cap.month_cost_nano_usd,
            share.cap.day_cost_nano_usd,
            share.cap.day_calls,
            int(share.is_ended),
            (share.create_time - _EPOCH) // timedelta(microseconds=1),
        ),
    )


def decode_share(record: bytes) -> KeyShare:
    """Return the share in a canonical record.

    Raises:
        CanonicalFormError: these bytes are not such a record.
    """
    read = FieldReader(RECORD_LABEL, record)
    try:
        share = KeyShare(
            provider_key_id=read.text(),
            agent_id=read.text(),
            organization_id=read.text(),
            operations=tuple(Operation(field_int(each)) for each in decode_fields(_LIST_LABEL, read.raw())),
            cap=ShareCap(month_cost_nano_usd=read.number(), day_cost_nano_usd=read.number(), day_calls=read.number()),
            is_ended=read.flag(),
            create_time=_EPOCH + timedelta(microseconds=read.number()),
        )
    except (ValueError, OverflowError) as error:
        message = "the record is not that of a share"
        raise CanonicalFormError(message) from error
    read.end()
    return share

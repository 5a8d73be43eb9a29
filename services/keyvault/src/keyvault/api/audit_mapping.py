"""AuditService's messages to the domain and back. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from byok.keyvault.v1 import audit_service_pb2
from byok.type.v1 import operation_pb2
from keyvault.api.fields import account_to, enum_from, principal_from
from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.new_keys import refused
from keyvault.usecases.list_entries import EntryListing, EntryPage
from keyvault.usecases.read_feed import FeedPage, FeedQuestion

if TYPE_CHECKING:
    from google.protobuf import timestamp_pb2

    from keyvault.usecases.export_entries import ExportPage
    from keyvault.usecases.read_entries import ProvedEntry
    from keyvault.usecases.verify_log import VerificationStep
    from servicekit.identity import Caller

KINDS_MAX: Final = 100
_LEASE_ID: Final = "lease_id"
_OPERATION: Final = "operation"


def listing_from(request: audit_service_pb2.ListEntriesRequest, caller: Caller) -> EntryListing:
    """Return what is asked for. Raises InvalidArgumentError, CallerNotAllowedError."""
    if len(request.kinds) > KINDS_MAX:
        raise refused("kinds", "TOO_MANY", f"Send at most {KINDS_MAX}.")
    return EntryListing(
        acting_for=principal_from(request.acting_for, caller),
        key_id=request.key_id,
        agent_id=request.agent_id,
        kinds=frozenset(enum_from(EntryKind, kind, f"kinds[{at}]") for at, kind in enumerate(request.kinds)),
        start_time=_time_from(request.start_time, "start_time") if request.HasField("start_time") else None,
        end_time=_time_from(request.end_time, "end_time") if request.HasField("end_time") else None,
        newest_first=request.newest_first,
        page_size=request.page_size,
        page_token=request.page_token,
    )


def page_to(page: EntryPage) -> audit_service_pb2.ListEntriesResponse:
    """Return one page as a message."""
    return audit_service_pb2.ListEntriesResponse(
        entries=[_proved_to(each) for each in page.entries],
        checkpoint=page.checkpoint.note,
        next_page_token=page.next_page_token,
    )


def export_from(request: audit_service_pb2.ExportEntriesRequest) -> tuple[int, int]:
    """Return the first and the last index that are asked for, 0 where it is not said."""
    return request.first_index, request.last_index


def exported_to(page: ExportPage) -> audit_service_pb2.ExportEntriesResponse:
    """Return a page of leaves as a message."""
    return audit_service_pb2.ExportEntriesResponse(
        leaves=[
            audit_service_pb2.ExportedLeaf(audit_index=each.audit_index, leaf=each.leaf, leaf_hash=each.leaf_hash)
            for each in page.leaves
        ],
        checkpoint=page.note,
    )


def verification_to(step: VerificationStep) -> audit_service_pb2.VerifyLogResponse:
    """Return a step of a verification as a message."""
    return audit_service_pb2.VerifyLogResponse(
        verified_entries=step.entries_done,
        verified_rows=step.rows_done,
        entries=step.entries,
        findings=[
            audit_service_pb2.LogFinding(
                kind=int(each.kind),  # type: ignore[arg-type]  # the numbers are the contract's
                audit_index=each.audit_index,
                row_id=each.row_id,
                description=each.description,
            )
            for each in step.findings
        ],
        is_done=step.is_done,
        checkpoint=step.note,
    )


def question_from(request: audit_service_pb2.ReadFeedRequest) -> FeedQuestion:
    """Return what a reader of the feed has."""
    return FeedQuestion(
        after_index=request.after_index,
        page_size=request.page_size,
        witnessed_size=request.witnessed_size,
        no_wait=request.no_wait,
    )


def feed_to(page: FeedPage) -> audit_service_pb2.ReadFeedResponse:
    """Return one page of the feed as a message."""
    return audit_service_pb2.ReadFeedResponse(
        entries=[entry_to(each.audit_index, each.entry) for each in page.entries],
        next_after_index=page.next_after_index,
        checkpoint=page.note,
        consistency_proof=page.consistency_proof,
        is_behind_witness=page.is_behind_witness,
    )


def entry_to(audit_index: int, entry: AuditEntry) -> audit_service_pb2.Entry:
    """Return an entry as a message; of a lease, its id and operation stand in fields of their own."""
    message = audit_service_pb2.Entry(
        audit_index=audit_index,
        kind=int(entry.kind),  # type: ignore[arg-type]  # the numbers are the contract's own
        caller=entry.caller,
        actor=entry.actor,
        key_id=entry.provider_key_id,
        key_version=entry.key_version,
        key_state=entry.key_state,  # type: ignore[arg-type]  # as above
        agent_id=entry.agent_id,
        account=None if entry.account is None else account_to(entry.account),
    )
    message.time.FromDatetime(entry.time)
    for name, value in entry.details:
        if entry.kind is EntryKind.LEASE_GRANTED and name == _LEASE_ID:
            message.lease_id = value
        elif entry.kind is EntryKind.LEASE_GRANTED and name == _OPERATION:
            message.operation = _operation_to(value)
        else:
            message.details.add(name=name, value=value)
    return message


def _proved_to(each: ProvedEntry) -> audit_service_pb2.ProvedEntry:
    return audit_service_pb2.ProvedEntry(
        entry=entry_to(each.audit_index, each.entry),
        leaf=each.leaf,
        leaf_hash=each.leaf_hash,
        inclusion_proof=each.proof,
    )


def _operation_to(name: str) -> operation_pb2.Operation.ValueType:
    try:
        return operation_pb2.Operation.Value(f"OPERATION_{name}")
    except ValueError:
        # A newer release wrote it.
        return operation_pb2.OPERATION_UNSPECIFIED


def _time_from(message: timestamp_pb2.Timestamp, field: str) -> datetime:
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise refused(field, "TIME_OUT_OF_RANGE", "Send a time between the years 1 and 9999.") from None

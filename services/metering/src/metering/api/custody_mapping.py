"""What was witnessed of KeyVault's audit log, to and from protobuf. Pure."""

from byok.metering.v1 import account_service_pb2
from metering.api.fields import invalid, time_to
from metering.domain.accounts import check_identifier
from metering.domain.custody import REASON_LENGTH_MAX, AcceptedRestore, CustodyRecord


def custody_witness(record: CustodyRecord) -> account_service_pb2.CustodyWitness:
    """Return the message of a record."""
    message = account_service_pb2.CustodyWitness(
        state=account_service_pb2.CustodyState.ValueType(record.state.value),
        checkpoint=record.held.note if record.held else "",
        witnessed_size=record.size,
    )
    if record.witness_time is not None:
        message.witness_time.CopyFrom(time_to(record.witness_time))
    if record.contradiction is not None:
        message.contradicting_checkpoint = record.contradiction.checkpoint
        message.description = record.contradiction.description
    if record.rollback_time is not None:
        message.rollback_time.CopyFrom(time_to(record.rollback_time))
    return message


def accepted_restore(request: account_service_pb2.AcceptCustodyRestoreRequest) -> AcceptedRestore:
    """Return what an operator accepts.

    Raises:
        InvalidArgumentError: A field is missing or wrong.
    """
    check_identifier(request.actor, "actor")
    if not 1 <= len(request.reason) <= REASON_LENGTH_MAX or not request.reason.isprintable():
        raise invalid("reason", "REASON_MALFORMED", f"must be 1 to {REASON_LENGTH_MAX} printable characters")
    if request.witnessed_size < 0:
        raise invalid("witnessed_size", "OUT_OF_RANGE", "must be what GetCustodyWitness answers")
    return AcceptedRestore(
        request_id=request.request_id,
        actor=request.actor,
        reason=request.reason,
        witnessed_size=request.witnessed_size,
    )

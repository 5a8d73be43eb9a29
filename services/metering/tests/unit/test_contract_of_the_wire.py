"""The error table, the access list and the enums agree with the protos."""

import inspect
from importlib.resources import files

import pytest

from byok.metering.v1 import (
    account_service_pb2,
    admission_service_pb2,
    error_reason_pb2,
    limit_service_pb2,
    reservation_pb2,
    usage_service_pb2,
)
from byok.type.v1 import account_pb2, operation_pb2
from metering.api.errors import TABLE
from metering.api.page_tokens import page_size, page_token, position_of
from metering.app import service_descriptors
from metering.domain import enums, errors
from metering.domain.custody import CustodyState
from metering.domain.usage import Dimension
from servicekit.errors import DomainError, InvalidArgumentError
from servicekit.identity import AccessPolicy
from servicekit.wire import table_faults


def test_the_error_table_is_exactly_the_domains_errors_and_the_documented_reasons() -> None:
    """No error without a reason, no reason that is never sent."""
    defined = [
        each
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, DomainError) and each.__module__ == errors.__name__
    ]
    replaced = [each for each in TABLE.rows if each.__module__ == "servicekit.errors"]
    assert table_faults(TABLE, errors=[*defined, *replaced], reasons=error_reason_pb2.ErrorReason.keys()) == []


def test_every_rpc_is_on_the_access_list() -> None:
    """An RPC that nobody may call would be a mistake."""
    services = service_descriptors()
    policy = AccessPolicy.load((files("metering") / "access.toml").read_text(encoding="utf-8"), services=services)
    served = {f"{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert policy.listed == served
    for rpc in served:
        is_admission = "AdmissionService" in rpc
        assert (policy.allowed_roles(f"/{rpc}") == {"router"}) is is_admission


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (enums.Payer, account_pb2.Payer),
        (enums.Operation, operation_pb2.Operation),
        (enums.PlatformCause, reservation_pb2.PlatformCause),
        (enums.Unit, limit_service_pb2.LimitUnit),
        (enums.Window, limit_service_pb2.LimitWindow),
        (enums.OperationState, admission_service_pb2.OperationState),
        (enums.EntryKind, usage_service_pb2.LedgerEntryKind),
        (Dimension, usage_service_pb2.UsageDimension),
        (CustodyState, account_service_pb2.CustodyState),
    ],
)
def test_numbers_of_enums_are_the_protos(ours: type[enums.Payer], theirs: object) -> None:
    """They are mapped by number, so the names must match."""
    wire = {number: name for name, number in theirs.items() if number}  # type: ignore[attr-defined]  # every enum wrapper has it
    assert {each.value for each in ours} == set(wire)
    for each in ours:
        assert wire[each.value].endswith(each.name)


def test_a_page_token_is_bound_to_its_filter() -> None:
    """A token of another filter, or of nobody, is refused."""
    token = page_token("position", "List", "owner-1")
    assert position_of(token, "List", "owner-1") == "position"
    assert position_of("", "List") == ""
    for wrong in (token[:-2], "%%%", "AAAA"):
        with pytest.raises(InvalidArgumentError):
            position_of(wrong, "List", "owner-1", "more")
    with pytest.raises(InvalidArgumentError):
        position_of(token, "List", "owner-2")
    with pytest.raises(InvalidArgumentError):
        position_of(page_token("a\x00", "List", "owner-1"), "List", "owner-1")
    assert page_size(0) == 50
    for wrong_size in (-1, 1_001):
        with pytest.raises(InvalidArgumentError):
            page_size(wrong_size)

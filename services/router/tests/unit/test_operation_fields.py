"""What callers may write into the fields of an operation."""

from dataclasses import replace

import pytest

from router.domain.operations import check_guardrail
from servicekit.clock import SystemClock
from servicekit.errors import InvalidArgumentError
from servicekit.ids import new_uuid7
from services.router.tests.kit import Workbench

BENCH = Workbench()
NOW = SystemClock().now()


@pytest.mark.parametrize(
    "superseded",
    ["junk", "0192f0c4-9d3a-4000-8000-000000000000", new_uuid7(NOW).upper()],
    ids=["junk", "a UUIDv4", "upper case"],
)
def test_only_a_request_id_can_be_superseded(superseded: str) -> None:
    """What could never have named an operation is a mistake of the caller's."""
    request = BENCH.guardrail()
    context = replace(request.context, request_id=new_uuid7(NOW), supersedes_request_id=superseded)
    with pytest.raises(InvalidArgumentError) as refused:
        check_guardrail(replace(request, context=context), now=NOW)
    assert [each.field for each in refused.value.violations] == ["context.supersedes_request_id"]


def test_an_operation_of_long_ago_can_be_superseded() -> None:
    """Its id is not one of a request that is made now, so that its age does not matter."""
    request = BENCH.guardrail()
    old = "0192f0c4-9d3a-7000-8000-000000000000"
    context = replace(request.context, request_id=new_uuid7(NOW), supersedes_request_id=old)
    check_guardrail(replace(request, context=context), now=NOW)

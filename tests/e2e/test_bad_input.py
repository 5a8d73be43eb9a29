"""Whatever is wrong with a request is said by a typed error that names the field and what to do."""

from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc import error_details_pb2

from byok.keyvault.v1 import key_service_pb2, provider_key_pb2
from byok.router.v1 import operation_result_pb2, operation_service_pb2
from byok.type.v1 import account_pb2, operation_pb2
from servicekit.clock import SystemClock
from servicekit.ids import new_uuid7
from servicekit.wire import RemoteError
from testkit.simulator.client import SimulatorControl
from testkit.simulator.faults import FaultKind
from testkit.simulator.ledger import key_fingerprint
from testkit.simulator.vendors import make_key
from testkit.stack.customer import POLICY, Customer, Suite, new_request_id
from testkit.stack.refusals import refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


_NOW = SystemClock().now()


def _short(value: str) -> str:
    """Return a test's name for a value that may be very long."""
    return repr(value[:24])


def _violation(error: RemoteError, field: str) -> str:
    """Return what is said of a field, which must be named and explained."""
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    bad = error.detail(error_details_pb2.BadRequest)
    assert bad is not None
    said = {each.field: each.description for each in bad.field_violations}
    assert field in said, said
    assert said[field]
    return said[field]


def _guardrail(customer: Customer, **changes: object) -> operation_service_pb2.EvaluateGuardrailRequest:
    request = operation_service_pb2.EvaluateGuardrailRequest(
        context=customer.context(), content="Bread.", policy_text=POLICY
    )
    for name, value in changes.items():
        holder = request.context if name in ("request_id", "agent_id", "actor") else request
        setattr(holder, name, value)
    return request


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("content", "", "content"),
        ("content", "x" * 100_001, "content"),
        ("policy_text", "", "policy"),
        ("policy_text", "x" * 20_001, "policy_text"),
        ("request_id", "", "context.request_id"),
        ("request_id", "not-a-uuid", "context.request_id"),
        ("request_id", "0192F0C4-9D3A-7000-8000-000000000000", "context.request_id"),
        pytest.param("request_id", new_uuid7(_NOW - timedelta(days=36)), "context.request_id", id="an old id"),
        pytest.param("request_id", new_uuid7(_NOW + timedelta(hours=10)), "context.request_id", id="an id to come"),
        ("agent_id", "", "context.attribution"),
        ("agent_id", "agent\nwith a line", "context.agent_id"),
        ("agent_id", "a" * 129, "context.agent_id"),
        ("actor", "a" * 129, "context.actor"),
    ],
    ids=_short,
)
async def test_an_operation_with_a_wrong_field_is_refused(
    suite: Suite, customer: Customer, field: str, value: str, named: str
) -> None:
    """Empty, oversized, malformed, stale and future values never reach a provider."""
    error = await refusal(suite.operations.EvaluateGuardrail(_guardrail(customer, **{field: value})))
    _violation(error, named)
    failure = error.detail(operation_result_pb2.OperationFailure)
    assert failure is not None
    assert failure.disposition == operation_result_pb2.DISPOSITION_HOLD


async def test_an_unknown_enum_is_refused(suite: Suite, customer: Customer) -> None:
    """A number that this release does not know is not taken for the default."""
    request = operation_service_pb2.GenerateEmbeddingsRequest(context=customer.context(), texts=["x"], purpose=99)  # type: ignore[arg-type]  # The point of it.
    _violation(await refusal(suite.operations.GenerateEmbeddings(request)), "purpose")


async def test_bytes_that_are_not_text_are_refused(suite: Suite, customer: Customer) -> None:
    """A string field that is not UTF-8 is the caller's fault, not ours."""
    request = _guardrail(customer, content="MARK").SerializeToString().replace(b"MARK", b"\xff\xfe\xff\xfe")
    call = suite.channel("router", "platform").unary_unary(
        "/byok.router.v1.OperationService/EvaluateGuardrail", request_serializer=bytes, response_deserializer=bytes
    )
    error = await refusal(call(request))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_agent_that_is_not_registered_or_anothers_is_not_found(suite: Suite, customer: Customer) -> None:
    """Both get the same answer, so that nobody learns which agents exist."""
    unknown = await refusal(customer.evaluate())
    await customer.set_up("openai")
    request = _guardrail(customer)
    request.context.acting_for.CopyFrom(account_pb2.Principal(owner_id="somebody-else"))
    foreign = await refusal(suite.operations.EvaluateGuardrail(request))
    for error in (unknown, foreign):
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "AGENT_NOT_FOUND")


@pytest.mark.parametrize(
    "base_url",
    [
        "http://api.example.com/v1",
        "https://user:hunter2x@api.example.com/v1",
        "https://api.example.com/v1?key=1",
        "https://api.example.com/v1#part",
        "https://93.184.216.34/v1",
        "https://127.0.0.1/v1",
        "https://[::1]/v1",
        "https://169.254.169.254/latest",
        "https://2130706433/v1",
        "https://localhost/v1",
        "ftp://api.example.com/v1",
        "https:///v1",
    ],
)
async def test_a_base_url_that_must_not_be_called_is_refused(customer: Customer, base_url: str) -> None:
    """Not https, credentials, query, fragment, an address in place of a name, or this machine."""
    await customer.register()
    said = _violation(
        await refusal(customer.add_key("openai_compatible", secret="t" * 40, base_url=base_url)), "base_url"
    )
    assert "hunter2x" not in said


async def test_a_key_with_spaces_around_it_is_trimmed_and_it_is_said(suite: Suite, customer: Customer) -> None:
    """What was pasted around a key is cut off, and the answer tells so."""
    await customer.register()
    request = _create_key(suite, customer, secret=f"  {customer.secret('openai')}\r\n")
    answer = await suite.keys.CreateKey(request)
    assert [each.field for each in answer.adjustments] == ["plaintext"]
    assert answer.key.secret_suffix == customer.secret("openai")[-4:]


async def test_a_key_of_another_vendor_is_recognised(customer: Customer) -> None:
    """The error names the vendor that the key looks like, and not the key."""
    await customer.register()
    secret = make_key("anthropic", "misplaced")
    error = await refusal(customer.add_key("openai", secret=secret))
    said = _violation(error, "plaintext")
    assert "Anthropic" in said
    assert secret not in f"{error} {said} {error.details}"


@pytest.mark.parametrize(
    "secret", ["", "   ", "sk-proj-with space inside 12345", "sk-proj-\x00control0000", "x" * 10_000]
)
async def test_a_key_that_no_provider_issues_is_refused(customer: Customer, secret: str) -> None:
    """Empty, blank, with spaces or control characters inside, or far too long."""
    await customer.register()
    _violation(await refusal(customer.add_key("openai", secret=secret)), "plaintext")


async def test_a_mapping_to_a_model_that_cannot_do_it_is_refused(suite: Suite, customer: Customer) -> None:
    """An embedding model judges nothing."""
    await customer.register()
    request = _create_key(suite, customer, secret=customer.secret("openai"))
    request.mapping.append(
        provider_key_pb2.OperationRoute(
            operation=operation_pb2.OPERATION_GUARDRAIL_EVALUATION, model="text-embedding-3-small"
        )
    )
    _violation(await refusal(suite.keys.CreateKey(request)), "mapping[0].model")


async def test_a_redirect_is_not_followed(customer: Customer, simulator_control: SimulatorControl) -> None:
    """A provider that points into the private network is asked once, and nobody follows."""
    await customer.register()
    key = await customer.add_key("openai")
    await simulator_control.add_fault(
        FaultKind.REDIRECT, key_fingerprint=key_fingerprint(customer.secret("openai")), times=None
    )
    error = await refusal(customer.validate(key.key_id))
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "EGRESS_REFUSED")
    assert "redirect" in error.message
    await customer.wait_for_state(key.key_id, provider_key_pb2.KEY_STATE_PENDING_VALIDATION)


@pytest.mark.parametrize("ask", ["get", "revoke", "validate"])
async def test_another_owners_key_is_not_found(suite: Suite, customer: Customer, ask: str) -> None:
    """Whoever acts for another owner learns nothing of the key, not even that there is one."""
    key = await customer.set_up("openai")
    stranger = Customer(suite)
    await stranger.register()
    asks: dict[str, Callable[[], Awaitable[object]]] = {
        "get": lambda: suite.keys.GetKey(
            key_service_pb2.GetKeyRequest(key_id=key.key_id, acting_for=stranger.principal)
        ),
        "revoke": lambda: stranger.revoke(key.key_id),
        "validate": lambda: stranger.validate(key.key_id),
    }
    error = await refusal(asks[ask]())
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "PROVIDER_KEY_NOT_FOUND")


def _create_key(suite: Suite, customer: Customer, *, secret: str) -> key_service_pb2.CreateKeyRequest:
    return key_service_pb2.CreateKeyRequest(
        request_id=new_request_id(),
        acting_for=customer.principal,
        actor="testkit",
        scope=provider_key_pb2.KEY_SCOPE_OWNER,
        provider="openai",
        base_url=suite.stack.simulator.base_url("openai"),
        plaintext=secret.encode(),
    )

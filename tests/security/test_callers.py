"""Who may call what: a certificate's one identity decides, and what it does not list is refused and recorded."""

import aiohttp
import asyncpg
import grpc
import pytest

from byok.keyvault.v1 import key_service_pb2, key_service_pb2_grpc, lease_service_pb2, lease_service_pb2_grpc
from byok.metering.v1 import (
    account_service_pb2,
    account_service_pb2_grpc,
    admission_service_pb2,
    admission_service_pb2_grpc,
)
from servicekit.channels import open_channel
from servicekit.identity import TlsFiles
from testkit.pki import ThrowawayCa
from testkit.stack.customer import new_request_id
from testkit.stack.refusals import refusal
from testkit.stack.stack import Stack
from testkit.waiting import eventually


def _lease(channel: grpc.aio.Channel) -> object:
    return lease_service_pb2_grpc.LeaseServiceStub(channel).AcquireLeases(lease_service_pb2.AcquireLeasesRequest())


def _reserve(channel: grpc.aio.Channel) -> object:
    stub = admission_service_pb2_grpc.AdmissionServiceStub(channel)
    return stub.ReserveBatch(admission_service_pb2.ReserveBatchRequest())


def _bind(channel: grpc.aio.Channel) -> object:
    request = key_service_pb2.BindAgentRequest(request_id=new_request_id(), agent_id="a", owner_id="o")
    return key_service_pb2_grpc.KeyServiceStub(channel).BindAgent(request)


def _register(channel: grpc.aio.Channel) -> object:
    request = account_service_pb2.RegisterAgentRequest(request_id=new_request_id(), agent_id="a", owner_id="o")
    return account_service_pb2_grpc.AccountServiceStub(channel).RegisterAgent(request)


_FORBIDDEN = {
    "a platform service leases no key": ("platform", "keyvault", _lease),
    "the edge leases no key": ("edge", "keyvault", _lease),
    "metering leases no key": ("metering", "keyvault", _lease),
    "an operator leases no key": ("operator", "keyvault", _lease),
    "a router binds no agent": ("router", "keyvault", _bind),
    "a platform service binds no agent": ("platform", "keyvault", _bind),
    "the edge reserves nothing": ("edge", "metering", _reserve),
    "keyvault reserves nothing": ("keyvault", "metering", _reserve),
    "a router registers no agent": ("router", "metering", _register),
    "a service that nobody knows does nothing": ("stranger", "metering", _register),
}


@pytest.mark.parametrize("case", list(_FORBIDDEN))
async def test_an_rpc_that_a_role_is_not_listed_for_is_refused(suite_stack: Stack, case: str) -> None:
    """The refusal is typed, and comes before anything is looked at."""
    role, service, call = _FORBIDDEN[case]
    async with open_channel(
        suite_stack.target(service), suite_stack.client_tls(role), server_name="localhost"
    ) as channel:
        error = await refusal(call(channel))  # type: ignore[arg-type]  # Stubs differ only in their answers.
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")


@pytest.mark.parametrize("kind", ["issue_without_uri", "issue_uri_in_dns", "issue_uri_in_email"])
async def test_an_identity_that_is_only_text_elsewhere_is_none(suite_stack: Stack, kind: str) -> None:
    """A router's name as a host name or an e-mail address leases no key."""
    await _assert_no_lease(suite_stack, getattr(suite_stack.ca, kind)("router"))


async def test_two_identities_are_none(suite_stack: Stack) -> None:
    """A certificate that claims to be two services is neither."""
    await _assert_no_lease(suite_stack, suite_stack.ca.issue_two_uris("router", "platform"))


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://byok.local/ns/byok/sa/router/x",
        "spiffe://byok.local/ns/byok/sa/router2",
        "spiffe://byok.local/ns/a/b/sa/router",
        "spiffe://byok.local/sa/router",
        "https://byok.local/ns/byok/sa/router",
    ],
)
async def test_a_look_alike_identity_is_none(suite_stack: Stack, uri: str) -> None:
    """A longer path, another name or another scheme is another service."""
    await _assert_no_lease(suite_stack, suite_stack.ca.issue("router", uri=uri))


async def _assert_no_lease(stack: Stack, tls: TlsFiles) -> None:
    async with open_channel(stack.target("keyvault"), tls, server_name="localhost") as channel:
        error = await refusal(_lease(channel))  # type: ignore[arg-type]  # As above.
    assert error.code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


async def test_handshakes_fail_without_a_good_certificate_and_are_counted(
    suite_stack: Stack, throwaway_ca: ThrowawayCa
) -> None:
    """No certificate, an expired one, or another authority's: no RPC is reached, and the metrics know of it."""
    before = await _failed_handshakes(suite_stack)
    stranger = throwaway_ca.issue("router")
    bad = [
        suite_stack.ca.issue_expired("router"),
        TlsFiles(certificate=stranger.certificate, private_key=stranger.private_key, ca=suite_stack.ca.ca_file),
    ]
    for tls in bad:
        async with open_channel(suite_stack.target("keyvault"), tls, server_name="localhost") as channel:
            error = await refusal(_lease(channel))  # type: ignore[arg-type]  # As above.
            assert error.code == grpc.StatusCode.UNAVAILABLE
    trusted = suite_stack.ca.ca_file.read_bytes()
    async with grpc.aio.secure_channel(
        suite_stack.target("keyvault"),
        grpc.ssl_channel_credentials(trusted),
        options=[("grpc.ssl_target_name_override", "localhost")],
    ) as channel:
        error = await refusal(_lease(channel))  # type: ignore[arg-type]  # As above.
        assert error.code == grpc.StatusCode.UNAVAILABLE
    await eventually(lambda: _failed_handshakes(suite_stack), lambda seen: seen >= before + 3)


async def test_plain_text_is_not_spoken(suite_stack: Stack) -> None:
    """A client without TLS gets nowhere."""
    async with grpc.aio.insecure_channel(suite_stack.target("keyvault")) as channel:
        error = await refusal(_lease(channel))  # type: ignore[arg-type]  # As above.
    assert error.code == grpc.StatusCode.UNAVAILABLE


async def test_refusals_are_recorded(suite_stack: Stack) -> None:
    """KeyVault's audit log says who was refused what."""
    tls = suite_stack.ca.issue("platform", uri="spiffe://byok.local/ns/audited/sa/platform")
    async with open_channel(suite_stack.target("keyvault"), tls, server_name="localhost") as channel:
        await refusal(_lease(channel))  # type: ignore[arg-type]  # As above.
    connection = await asyncpg.connect(suite_stack.keyvault_dsn)

    async def recorded() -> bool:
        tables = await connection.fetch(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_name LIKE '%audit%'"
        )
        for table in tables:
            rows = await connection.fetch(f'SELECT t::text FROM "{table["table_schema"]}"."{table["table_name"]}" t')
            if any("ns/audited/sa/platform" in _readable(row["t"]) for row in rows):
                return True
        return False

    try:
        assert await eventually(recorded, bool)
    finally:
        await connection.close()


def _readable(row: str) -> str:
    """Return a row with its bytea columns, which Postgres shows in hex, as text."""
    parts = [row]
    for part in row.strip("()").split(","):
        text = part.strip('"').lstrip("\\")
        if text.startswith("x"):
            try:
                parts.append(bytes.fromhex(text[1:]).decode(errors="replace"))
            except ValueError:
                continue
    return " ".join(parts)


async def _failed_handshakes(stack: Stack) -> float:
    total = 0.0
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{stack.service('keyvault').admin_port}/metrics") as response,
    ):
        for line in (await response.text()).splitlines():
            if "handshake_failures_total{" in line:
                total += float(line.rsplit(" ", 1)[1])
    return total

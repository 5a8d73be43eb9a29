"""Who gets in: real certificates over real sockets."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from byok.keyvault.v1 import lease_service_pb2 as pb
from byok.keyvault.v1 import lease_service_pb2_grpc as rpc
from servicekit.channels import open_channel
from servicekit.identity import TlsFiles
from servicekit.wire import RemoteError, error_from_rpc
from testkit.pki import ThrowawayCa

Serve = Callable[..., Awaitable[Any]]

_A_WHILE = timedelta(minutes=1)


async def _refusal(stub: Any, request: Any = None) -> RemoteError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.AcquireLeases(request or pb.AcquireLeasesRequest(), timeout=5)
    return error_from_rpc(refused.value)


async def test_a_listed_role_is_served(serve: Serve) -> None:
    """The identity is the certificate's URI, and the servicer sees it."""
    served = await serve()
    answer = await (await served.stub()).AcquireLeases(pb.AcquireLeasesRequest())
    assert answer.deployment == "spiffe://byok.local/ns/byok/sa/router"


async def test_without_a_certificate_the_handshake_fails(serve: Serve) -> None:
    """A client that shows no certificate never reaches a servicer."""
    served = await serve()
    credentials = grpc.ssl_channel_credentials(root_certificates=served.files.ca.read_bytes())
    async with grpc.aio.secure_channel(served.target, credentials) as channel:
        failure = await _refusal(rpc.LeaseServiceStub(channel))
    assert failure.code is grpc.StatusCode.UNAVAILABLE
    assert not served.servicer.entered.is_set()


async def test_a_certificate_of_another_ca_fails(serve: Serve, tmp_path: Path) -> None:
    """The right URI signed by a foreign CA does not get in."""
    served = await serve()
    foreign = ThrowawayCa(tmp_path / "foreign").issue("router")
    files = TlsFiles(certificate=foreign.certificate, private_key=foreign.private_key, ca=served.files.ca)
    assert (await _refusal(await served.stub(files))).code is grpc.StatusCode.UNAVAILABLE
    assert not served.servicer.entered.is_set()


async def test_an_expired_certificate_fails(serve: Serve) -> None:
    """A certificate that has ended does not get in."""
    served = await serve()
    assert (await _refusal(await served.stub(served.ca.issue_expired("router")))).code is grpc.StatusCode.UNAVAILABLE


async def test_plain_text_fails(serve: Serve) -> None:
    """A client without TLS does not get in."""
    served = await serve()
    async with grpc.aio.insecure_channel(served.target) as channel:
        assert (await _refusal(rpc.LeaseServiceStub(channel))).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    "issue",
    [
        pytest.param(lambda ca: ca.issue_without_uri("router"), id="no URI"),
        pytest.param(lambda ca: ca.issue_two_uris("router", "metering"), id="two URIs"),
        pytest.param(lambda ca: ca.issue_uri_in_dns("router"), id="the URI's text as a DNS name"),
        pytest.param(lambda ca: ca.issue_uri_in_email("router"), id="the URI's text as an e-mail address"),
        pytest.param(lambda ca: ca.issue("stranger"), id="a URI without a role"),
        pytest.param(lambda ca: ca.issue("metering"), id="a role that is not listed for the call"),
        pytest.param(
            lambda ca: ca.issue("x", uri="spiffe://byok.local/ns/a/b/sa/router"), id="a wildcard spans one segment only"
        ),
        pytest.param(
            lambda ca: ca.issue("x", uri="spiffe://byok.local/ns/byok/sa/router2"), id="a longer name with that start"
        ),
    ],
)
async def test_whoever_is_not_listed_is_refused(serve: Serve, issue: Callable[[ThrowawayCa], TlsFiles]) -> None:
    """Only exactly one URI with a listed role is let through; the rest are refused by name, and reported."""
    served = await serve()
    failure = await _refusal(await served.stub(issue(served.ca)))
    assert failure.code is grpc.StatusCode.PERMISSION_DENIED
    assert failure.reason == "CALLER_NOT_ALLOWED"
    assert not served.servicer.entered.is_set()
    assert [refusal.count for refusal in served.refusals] == [1]


@pytest.mark.parametrize("method", ["ReportOutcomes", "ReportValidation"])
async def test_an_empty_list_and_an_unlisted_call_are_refused(serve: Serve, method: str) -> None:
    """What nobody is listed for, nobody may call."""
    served = await serve()
    stub = await served.stub()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(stub, method)(getattr(pb, f"{method}Request")())
    assert error_from_rpc(refused.value).reason == "CALLER_NOT_ALLOWED"


async def test_refusals_of_one_caller_are_one_report(serve: Serve) -> None:
    """A caller that tries again and again is reported once, and its further tries as a number when draining."""
    served = await serve()
    stub = await served.stub(served.ca.issue("metering"))
    for _ in range(5):
        await _refusal(stub)
    assert [(each.caller, each.count) for each in served.refusals] == [("spiffe://byok.local/ns/byok/sa/metering", 1)]
    await served.server.drain()
    assert [each.count for each in served.refusals] == [1, 4]


async def test_health_and_reflection_are_for_every_role(serve: Serve) -> None:
    """A caller with any role may ask for health; one without a role may not."""
    served = await serve()
    channel = await served.channel(served.ca.issue("metering"))
    answer = await _health(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    stranger = await served.channel(served.ca.issue("stranger"))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _health(stranger).Check(health_pb2.HealthCheckRequest())
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_server_certificate_without_dns_name_is_refused_by_clients(serve: Serve, tmp_path: Path) -> None:
    """A URI alone does not make a server; operators must issue a DNS name too."""
    served = await serve()
    _replace(served.files, served.ca.issue_without_dns("keyvault"))
    # Loopback needs no DNS name when the address is asked for, so the name is.
    failure = await _refusal(await served.stub())
    assert failure.code is grpc.StatusCode.UNAVAILABLE


async def test_a_server_takes_a_new_certificate_without_restart(serve: Serve) -> None:
    """A certificate replaced on disk is shown at the next handshake; clients that trust only the new CA get in."""
    served = await serve()
    await (await served.stub()).AcquireLeases(pb.AcquireLeasesRequest())
    other = ThrowawayCa(served.files.certificate.parent / "next")
    _replace(served.files, other.issue("keyvault"))
    answer = await (await served.stub(other.issue("router"))).AcquireLeases(pb.AcquireLeasesRequest(), timeout=5)
    assert answer.deployment
    assert (await _refusal(await served.stub())).code is grpc.StatusCode.UNAVAILABLE


async def test_a_half_replaced_certificate_is_not_taken(serve: Serve) -> None:
    """While the key does not belong to the certificate, the old pair goes on serving."""
    served = await serve()
    served.files.certificate.write_bytes(served.ca.issue("keyvault").certificate.read_bytes())
    answer = await (await served.stub()).AcquireLeases(pb.AcquireLeasesRequest(), timeout=5)
    assert answer.deployment


async def test_a_client_takes_a_new_certificate_without_restart(serve: Serve, fake_clock: Any) -> None:
    """A client's certificate replaced on disk is shown on a new connection, while its stubs stay."""
    served = await serve()
    files = served.ca.issue("router")
    async with open_channel(served.target, files, clock=fake_clock) as channel:
        stub: Any = rpc.LeaseServiceStub(channel)
        await stub.AcquireLeases(pb.AcquireLeasesRequest())
        _replace(files, served.ca.issue("router", uri="spiffe://byok.local/ns/next/sa/router"))
        answer = await stub.AcquireLeases(pb.AcquireLeasesRequest())
        assert answer.deployment == "spiffe://byok.local/ns/byok/sa/router"
        await fake_clock.advance(_A_WHILE)
        answer = await stub.AcquireLeases(pb.AcquireLeasesRequest())
        assert answer.deployment == "spiffe://byok.local/ns/next/sa/router"
        assert channel.generation == 1


async def test_a_call_under_way_ends_on_the_old_connection(serve: Serve, fake_clock: Any) -> None:
    """Replacing the connection does not break the calls on it."""
    served = await serve()
    release = asyncio.Event()

    async def hold(_request: Any) -> pb.AcquireLeasesResponse:
        await release.wait()
        return pb.AcquireLeasesResponse(deployment="held")

    served.servicer.behavior = hold
    files = served.ca.issue("router")
    async with open_channel(served.target, files, clock=fake_clock) as channel:
        stub: Any = rpc.LeaseServiceStub(channel)
        held = asyncio.ensure_future(stub.AcquireLeases(pb.AcquireLeasesRequest(), timeout=10))
        await served.servicer.entered.wait()
        _replace(files, served.ca.issue("router"))
        await fake_clock.advance(_A_WHILE)
        served.servicer.behavior = None
        await stub.AcquireLeases(pb.AcquireLeasesRequest())
        assert channel.generation == 1
        release.set()
        assert (await held).deployment == "held"


def _replace(old: TlsFiles, new: TlsFiles) -> None:
    old.certificate.write_bytes(new.certificate.read_bytes())
    old.private_key.write_bytes(new.private_key.read_bytes())
    old.ca.write_bytes(new.ca.read_bytes())


def _health(channel: Any) -> Any:
    # Its stubs are typed for the synchronous flavour only.
    return health_pb2_grpc.HealthStub(channel)

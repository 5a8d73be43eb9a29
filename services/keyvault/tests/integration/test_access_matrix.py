"""Every client certificate × every RPC of the contract gets exactly what the policy file says.

The policy is read here by code of its own, so that a mistake in the service's reading of it shows. What matters most is
written down a second time, by hand, so that an edit of the policy shows, too.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import pytest
from cryptography import x509

import byok.keyvault.v1
import keyvault
from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.identity import TlsFiles
from servicekit.wire import error_from_rpc
from testkit.pki import ThrowawayCa, service_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor import MethodDescriptor

    from services.keyvault.tests.integration.vault import Vault

pytestmark = pytest.mark.asyncio(loop_scope="session")

POLICY: Final = tomllib.loads((Path(keyvault.__file__).parent / "access.toml").read_text(encoding="utf-8"))
ROLES: Final = ("edge", "operator", "metering", "router", "platform", "keyvault", "nobody")
# What a leak or an outage would follow from. Only here are these written by hand.
CERTAIN: Final = {
    "LeaseService/AcquireLeases": {"router"},
    "LeaseService/ClaimKeysForValidation": {"router"},
    "LeaseService/WatchAuthority": {"router"},
    "LeaseService/ReportOutcomes": {"router"},
    "LeaseService/ReportValidation": {"router"},
    "KeyService/CreateKey": {"edge", "operator"},
    "KeyService/ReplaceKeySecret": {"edge", "operator"},
    "KeyService/RevokeKey": {"edge", "operator"},
    "KeyService/BindAgent": {"metering"},
    "EmergencyService/Halt": {"edge", "operator"},
    "EmergencyService/Resume": {"edge", "operator"},
    "ExposureService/ListExposedKeys": {"operator"},
    "AuditService/ExportEntries": {"operator"},
    "AuditService/ReadFeed": {"metering", "operator"},
    "KeyringService/PromoteKey": {"operator"},
    "KeyringService/DestroyKey": {"operator"},
    "KeyringService/RotateRootKey": {"operator"},
}


def _methods() -> Iterator[MethodDescriptor]:
    for module in pkgutil.iter_modules(byok.keyvault.v1.__path__):
        if module.name.endswith("_service_pb2"):
            services = importlib.import_module(f"byok.keyvault.v1.{module.name}").DESCRIPTOR.services_by_name
            for service in services.values():
                yield from service.methods


METHODS: Final = list(_methods())


@dataclass(frozen=True)
class Presented:
    """A certificate: what it claims to be, and how it is made."""

    name: str
    make: Callable[[ThrowawayCa], TlsFiles]


def _uri(name: str, *uris: str) -> Presented:
    names = [x509.UniformResourceIdentifier(uri) for uri in uris]
    return Presented(name, lambda ca: ca.issue_names(name.replace(" ", "-"), [*names, x509.DNSName("localhost")]))


def _raw_uri(name: str, uri: bytes) -> Presented:
    """Return a certificate whose URI is no text that the library would encode."""

    def make(ca: ThrowawayCa) -> TlsFiles:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("x" * len(uri))]).public_bytes()
        extension = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, names.replace(b"x" * len(uri), uri))
        return ca.issue_names(name.replace(" ", "-"), [], alternative_names=extension)

    return Presented(name, make)


def _named(name: str, *names: x509.GeneralName) -> Presented:
    return Presented(name, lambda ca: ca.issue_names(name.replace(" ", "-"), names))


GOOD: Final = service_uri("edge")
REFUSED: Final = (
    _uri("of another trust domain", GOOD.replace("byok.local", "evil.example")),
    _uri("of a longer trust domain", GOOD.replace("byok.local", "byok.local.evil.example")),
    _uri("of a trust domain in capitals", GOOD.replace("byok.local", "BYOK.LOCAL")),
    _uri("with user and port", GOOD.replace("byok.local", "byok.local@evil.example:443")),
    _uri("with a trailing slash", f"{GOOD}/"),
    _uri("with a longer path", f"{GOOD}/edge"),
    _uri("with a longer name", f"{GOOD}s"),
    _uri("with a query", f"{GOOD}?"),
    _uri("with a fragment", f"{GOOD}#edge"),
    _uri("in capitals", GOOD.upper()),
    _uri("with the scheme in capitals", GOOD.replace("spiffe", "SPIFFE")),
    _uri("of another scheme", GOOD.replace("spiffe", "https")),
    _uri("with an encoded letter", GOOD.replace("edge", "%65dge")),
    _uri("with an encoded slash", GOOD.replace("/ns/byok", "/ns/a%2Fb")),
    _uri("with dot segments", GOOD.replace("/ns/byok", "/ns/..")),
    _uri("with a space", f"{GOOD} "),
    _uri("with a line break", f"{GOOD}\n"),
    _uri("empty", ""),
    _uri("with two", GOOD, service_uri("router")),
    _uri("with the same twice", GOOD, GOOD),
    _raw_uri("with NUL", f"{GOOD}\0.evil.example".encode()),
    _raw_uri("with NUL at its end", f"{GOOD}\0".encode()),
    _raw_uri("not ASCII", GOOD.replace("edge", "\u0435dge").encode()),
    _named("without names"),
    _named("with the text in a DNS name", x509.DNSName(GOOD), x509.DNSName("localhost")),
    _named("with the text in an e-mail name", x509.RFC822Name(GOOD)),
    Presented("with the text in its common name", lambda ca: ca.issue_names(GOOD, [], stem="common-name")),
)
NO_HANDSHAKE: Final = (
    Presented("expired", lambda ca: ca.issue_expired("edge")),
    Presented(
        "not yet valid",
        lambda ca: ca.issue_names(
            "not-yet", [x509.UniformResourceIdentifier(GOOD)], start=SystemClock().now() + timedelta(days=1)
        ),
    ),
    Presented("of another authority", lambda ca: _foreign(ca, "BYOK throw-away CA")),
    Presented("self-signed", lambda ca: ca.issue_self_signed("edge")),
)


def _foreign(ca: ThrowawayCa, name: str) -> TlsFiles:
    other = ThrowawayCa(ca.ca_file.parent / "another-authority", name=name).issue("edge")
    # It must trust the server, or it is the client that refuses.
    return type(other)(certificate=other.certificate, private_key=other.private_key, ca=ca.ca_file)


def _roles_of(uri: str) -> set[str]:
    """Return the roles that the policy gives to an identity, by a reading of its own."""
    parts = uri.split("/")
    return {
        role
        for role, patterns in POLICY["roles"].items()
        for pattern in patterns
        if len(pattern.split("/")) == len(parts)
        and all(want in ("*", part) for want, part in zip(pattern.split("/"), parts, strict=True))
    }


def _name(method: MethodDescriptor) -> str:
    return f"{method.containing_service.full_name}/{method.name}"


def _listed(method: MethodDescriptor) -> set[str]:
    return set(POLICY["allow"].get(_name(method), ()))


async def _call(channel: grpc.aio.Channel, method: MethodDescriptor) -> tuple[grpc.StatusCode, str]:
    """Make an empty call and return its status and reason; what is served and allowed says nothing of its caller."""
    path = f"/{_name(method)}"
    kind = ("stream" if method.client_streaming else "unary") + ("_stream" if method.server_streaming else "_unary")
    call = getattr(channel, kind)(path)
    try:
        if method.client_streaming:
            stream = call()
            # A refusal may come first, and the end of the request then meets a call that is over.
            with contextlib.suppress(grpc.aio.AioRpcError, Exception):
                await stream.done_writing()
            async for _ in stream:
                break
        elif method.server_streaming:
            async for _ in call(b"", timeout=10):
                break
        else:
            await call(b"", timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code(), error_from_rpc(error).reason
    return grpc.StatusCode.OK, ""


async def _refused(vault: Vault, tls: TlsFiles) -> dict[str, tuple[grpc.StatusCode, str]]:
    async with open_channel(f"localhost:{vault.port}", tls, server_name="localhost") as channel:
        return {_name(method): await _call(channel, method) for method in METHODS}


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_gets_what_the_policy_says(shared_vault: Vault, role: str) -> None:
    """Where its role is listed the caller is heard; anywhere else it is refused, with the reason."""
    uri = service_uri(role)
    roles = _roles_of(uri)
    assert roles == ({role} if role in POLICY["roles"] else set())
    tls = shared_vault.ca.issue(role, uri=uri)
    for name, (code, reason) in (await _refused(shared_vault, tls)).items():
        is_listed = bool(roles & set(POLICY["allow"].get(name, ())))
        assert (reason == "CALLER_NOT_ALLOWED") is not is_listed, (name, code, reason)
        assert (code is grpc.StatusCode.PERMISSION_DENIED) is not is_listed, (name, code, reason)


@pytest.mark.parametrize("presented", REFUSED, ids=lambda presented: presented.name)
async def test_a_certificate_that_only_looks_right_gets_nothing(shared_vault: Vault, presented: Presented) -> None:
    """Signed by the right authority, with an identity that is not exactly one URI of the right form."""
    tls = presented.make(shared_vault.ca)
    answers = await _refused(shared_vault, tls)
    codes = set(answers.values())
    # A URI that is no text at all is not even read by the TLS library: then there is no connection.
    assert codes in (
        {(grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")},
        {(grpc.StatusCode.UNAVAILABLE, "")},
    ), answers


@pytest.mark.parametrize("presented", NO_HANDSHAKE, ids=lambda presented: presented.name)
async def test_a_certificate_that_is_not_good_gets_no_connection(shared_vault: Vault, presented: Presented) -> None:
    """Out of its time, or signed by somebody else: the handshake fails, whatever it claims to be."""
    answers = await _refused(shared_vault, presented.make(shared_vault.ca))
    assert {code for code, _ in answers.values()} == {grpc.StatusCode.UNAVAILABLE}


async def test_without_a_certificate_there_is_no_connection(shared_vault: Vault) -> None:
    """Whoever shows none is not asked anything else."""
    root = shared_vault.ca.ca_file.read_bytes()
    options = [("grpc.ssl_target_name_override", "localhost")]
    credentials = grpc.ssl_channel_credentials(root_certificates=root)
    async with grpc.aio.secure_channel(f"localhost:{shared_vault.port}", credentials, options=options) as channel:
        for method in METHODS:
            assert (await _call(channel, method))[0] is grpc.StatusCode.UNAVAILABLE


async def test_what_matters_most_is_what_it_was() -> None:
    """An edit of the policy that gives secrets, or their authority, to somebody else is noticed here."""
    by_rpc = {_name(method).removeprefix("byok.keyvault.v1."): _listed(method) for method in METHODS}
    assert {rpc: by_rpc[rpc] for rpc in CERTAIN} == CERTAIN
    assert [rpc for rpc, roles in by_rpc.items() if "router" in roles and not rpc.startswith("LeaseService/")] == []
    assert all(re.fullmatch(r"spiffe://\*/ns/\*/sa/[a-z]+", uri) for uris in POLICY["roles"].values() for uri in uris)


async def test_every_rpc_of_the_contract_is_listed() -> None:
    """One that nobody may call was forgotten, and one that is no longer there must not come back unseen."""
    assert {_name(method) for method in METHODS} == set(POLICY["allow"])

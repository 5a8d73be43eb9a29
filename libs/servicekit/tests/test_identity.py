"""The policy file: what it must not contain, and whom it lets through."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from byok.keyvault.v1 import lease_service_pb2 as pb
from servicekit.errors import CallerNotAllowedError
from servicekit.identity import AccessPolicy, Caller, PolicyError, current_caller

_SERVICES = [pb.DESCRIPTOR.services_by_name["LeaseService"]]
_ROLES = '[roles]\nrouter = ["spiffe://byok.local/ns/*/sa/router"]\nroot = ["spiffe://byok.local/ns/ops/sa/router"]\n'
_RPC = "byok.keyvault.v1.LeaseService/AcquireLeases"
_KEY = ec.generate_private_key(ec.SECP256R1())
_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


def certificate_with(*uris: str) -> bytes:
    """Return a certificate with these URIs for its alternative names, in PEM."""
    names = [x509.UniformResourceIdentifier._init_without_validation(uri) for uri in uris]
    return (
        x509.CertificateBuilder(_NAME, _NAME, _KEY.public_key(), 1, _BEGIN, _BEGIN + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(_KEY, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def identify(policy: AccessPolicy, uris: list[bytes] | None) -> Caller:
    """Identify a caller whose certificate says the same as gRPC, as far as a certificate can say it."""
    return policy.identify(
        uris, certificate_with(*(uri.decode("ascii", "replace").replace("\ufffd", "?") for uri in uris or ()))
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(f'{_ROLES}[allow]\n"{_RPC}s" = ["router"]', f"unknown RPC {_RPC}s", id="unknown RPC"),
        pytest.param(
            f'{_ROLES}[allow]\n"byok.other.v1.S/M" = []', "unknown RPC byok.other.v1.S/M", id="unknown service"
        ),
        pytest.param(f'{_ROLES}[allow]\n"{_RPC}" = ["ruoter"]', "unknown role ruoter", id="unknown role"),
        pytest.param(f'{_ROLES}[allow]\n"{_RPC}" = "router"', "must be a list of names", id="no list"),
        pytest.param(f'{_ROLES}[allow]\n"{_RPC}" = [""]', "must be a list of names", id="an empty name"),
        pytest.param(_ROLES, "lacks the table [allow]", id="no allow"),
        pytest.param(f'[allow]\n"{_RPC}" = []', "lacks the table [roles]", id="no roles"),
        pytest.param(f"{_ROLES}[allow]\n[permit]\n", "unknown tables: permit", id="a misspelt table"),
        pytest.param("[roles", "not TOML", id="not TOML"),
    ],
)
def test_a_policy_that_names_what_is_not_there_does_not_load(text: str, said: str) -> None:
    """A mistake in the policy stops the service at its start."""
    with pytest.raises(PolicyError, match=said.replace("[", r"\[").replace("]", r"\]")):
        AccessPolicy.load(text, services=_SERVICES)


def test_a_policy_is_read_from_its_file(tmp_path: Path) -> None:
    """Services ship the policy as a file beside their wiring."""
    path = tmp_path / "access.toml"
    path.write_text(f'{_ROLES}[allow]\n"{_RPC}" = ["router"]', encoding="utf-8")
    policy = AccessPolicy.load(path, services=_SERVICES)
    assert policy.listed == {_RPC}
    assert policy.allowed_roles(f"/{_RPC}") == {"router"}
    assert policy.allowed_roles("/byok.keyvault.v1.LeaseService/ReportOutcomes") == frozenset()


def test_an_empty_list_lists_nobody() -> None:
    """An empty list is no open door."""
    policy = AccessPolicy.load(f'{_ROLES}[allow]\n"{_RPC}" = []', services=_SERVICES)
    assert policy.listed == frozenset()


@pytest.mark.parametrize("trust_domain", ["evil.example", "byok.local.evil.example", "BYOK.local", "byok", ""])
def test_callers_of_another_trust_domain_are_refused(trust_domain: str) -> None:
    """Where the one trust domain is told, the same path in another one has no role, whoever signed it."""
    policy = AccessPolicy.load('[roles]\nrouter = ["spiffe://*/ns/*/sa/router"]\n[allow]\n', services=_SERVICES)
    pinned = policy.within("byok.local")
    assert identify(pinned, [b"spiffe://byok.local/ns/byok/sa/router"]).roles == {"router"}
    with pytest.raises(CallerNotAllowedError):
        identify(pinned, [f"spiffe://{trust_domain}/ns/byok/sa/router".encode()])


@pytest.mark.parametrize(
    "segment", ["", ".", "..", "a/b", "a?b", "a#b", "a%2Fb", "a b", "a:b", "a@b", "a\0b", "a\nb", "a\\b", "ä", "*"]
)
def test_a_wildcard_stands_for_what_spiffe_calls_a_segment(segment: str) -> None:
    """No text in a namespace or a trust domain can look like another path to whoever reads the URI."""
    policy = AccessPolicy.load('[roles]\nrouter = ["spiffe://*/ns/*/sa/router"]\n[allow]\n', services=_SERVICES)
    for uri in (f"spiffe://byok.local/ns/{segment}/sa/router", f"spiffe://{segment}/ns/byok/sa/router"):
        with pytest.raises(CallerNotAllowedError):
            identify(policy, [uri.encode()])


def test_a_caller_may_have_several_roles() -> None:
    """Every pattern that fits gives its role."""
    policy = AccessPolicy.load(f"{_ROLES}[allow]\n", services=_SERVICES)
    assert identify(policy, [b"spiffe://byok.local/ns/ops/sa/router"]).roles == {"router", "root"}
    assert identify(policy, [b"spiffe://byok.local/ns/byok/sa/router"]).roles == {"router"}


@pytest.mark.parametrize(
    "uris",
    [
        pytest.param(None, id="none"),
        pytest.param([], id="an empty list"),
        pytest.param([b"spiffe://byok.local/ns/byok/sa/router"] * 2, id="the same twice"),
        pytest.param([b"spiffe://byok.local/ns//sa/router"], id="an empty segment"),
        pytest.param([b"spiffe://byok.local/ns/a/b/sa/router"], id="two segments"),
        pytest.param([b"spiffe://byokxlocal/ns/a/sa/router"], id="a dot is a dot"),
        pytest.param([b"spiffe://byok.local/ns/a/sa/router\n"], id="a trailing newline"),
        pytest.param([b"SPIFFE://BYOK.LOCAL/ns/a/sa/router"], id="other case"),
        pytest.param([b"\xff\xfe"], id="no text"),
    ],
)
def test_whoever_is_not_exactly_one_known_name_is_nobody(uris: list[bytes] | None) -> None:
    """Only one URI that fits a pattern as a whole is an identity."""
    policy = AccessPolicy.load(f"{_ROLES}[allow]\n", services=_SERVICES)
    with pytest.raises(CallerNotAllowedError):
        identify(policy, uris)


@pytest.mark.parametrize("certificate", [b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_a_certificate_that_is_not_understood_is_nobody(certificate: bytes) -> None:
    """What gRPC has made of it is not believed alone."""
    policy = AccessPolicy.load(f"{_ROLES}[allow]\n", services=_SERVICES)
    with pytest.raises(CallerNotAllowedError):
        policy.identify([b"spiffe://byok.local/ns/byok/sa/router"], certificate)


def test_what_a_certificate_says_after_a_nul_counts() -> None:
    """GRPC hands the URI over as C text, which ends at a NUL; a careless authority may sign what comes behind it."""
    policy = AccessPolicy.load(f"{_ROLES}[allow]\n", services=_SERVICES)
    uri = "spiffe://byok.local/ns/byok/sa/router"
    assert policy.identify([uri.encode()], certificate_with(uri)).roles == {"router"}
    with pytest.raises(CallerNotAllowedError):
        policy.identify([uri.encode()], certificate_with(f"{uri}\0.evil.example"))


def test_outside_of_a_call_there_is_no_caller() -> None:
    """Asking for the caller where none is must not answer with somebody."""
    with pytest.raises(LookupError):
        current_caller()

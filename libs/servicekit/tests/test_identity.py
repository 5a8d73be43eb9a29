"""The policy file: what it must not contain, and whom it lets through."""

from pathlib import Path

import pytest

from byok.keyvault.v1 import lease_service_pb2 as pb
from servicekit.errors import CallerNotAllowedError
from servicekit.identity import AccessPolicy, PolicyError, current_caller

_SERVICES = [pb.DESCRIPTOR.services_by_name["LeaseService"]]
_ROLES = '[roles]\nrouter = ["spiffe://byok.local/ns/*/sa/router"]\nroot = ["spiffe://byok.local/ns/ops/sa/router"]\n'
_RPC = "byok.keyvault.v1.LeaseService/AcquireLeases"


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


def test_a_caller_may_have_several_roles() -> None:
    """Every pattern that fits gives its role."""
    policy = AccessPolicy.load(f"{_ROLES}[allow]\n", services=_SERVICES)
    assert policy.identify([b"spiffe://byok.local/ns/ops/sa/router"]).roles == {"router", "root"}
    assert policy.identify([b"spiffe://byok.local/ns/byok/sa/router"]).roles == {"router"}


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
        policy.identify(uris)


def test_outside_of_a_call_there_is_no_caller() -> None:
    """Asking for the caller where none is must not answer with somebody."""
    with pytest.raises(LookupError):
        current_caller()

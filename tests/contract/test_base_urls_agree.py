"""What KeyVault saves as a base URL, the Router's guard takes, and both know the same exemptions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvault.domain.base_urls import URL_CHARACTERS_MAX, canonical_base_url
from router.domain.refusals import EgressForbiddenError
from router.transports.egress_guard import EgressPolicy
from servicekit.errors import InvalidArgumentError

ALLOWED = ("localhost:11434", "127.0.0.1:8080", "[::1]:8443", "gpu.local:443")
PIECES = (
    *(
        "localhost",
        "LOCALHOST",
        "127.0.0.1",
        "10.0.0.5",
        "[::1]",
        "::1",
        "[::ffff:7f00:1]",
        "api.example.com",
        "gpu.local",
    ),
    *(":11434", ":8080", ":8443", ":443", ":0", ":+443", ":", "[", "]", "@", "user:pass@", ".", "..", "/", "//", "/v1"),
    *("?", "#", "%2e", "%40", "%00", ";", "&", "\\", "\t", "x", "_", "-", "٣", "0x7f", "017700000001"),
)


@settings(max_examples=1_000, deadline=None)
@given(
    scheme=st.sampled_from(["http://", "https://", "HTTPS://"]), pieces=st.lists(st.sampled_from(PIECES), max_size=6)
)
def test_what_may_be_saved_may_be_reached_and_stays_as_it_is(scheme: str, pieces: list[str]) -> None:
    """No saved URL is refused at the call for its shape, and a canonical form is its own canonical form."""
    try:
        canonical = canonical_base_url(scheme + "".join(pieces), allowed_hosts=ALLOWED)
    except InvalidArgumentError:
        return
    assert canonical_base_url(canonical, allowed_hosts=ALLOWED) == canonical
    EgressPolicy(ALLOWED).endpoint(f"{canonical}/chat/completions")


@pytest.mark.parametrize("place", ALLOWED)
def test_every_exempt_place_is_exempt_in_both(place: str) -> None:
    """An exemption counts in both services, written in one way, and at its own port only."""
    url = f"http://{place}"
    assert EgressPolicy(ALLOWED).endpoint(canonical_base_url(url, allowed_hosts=ALLOWED)).is_exempt
    other = f"http://{place}9"
    with pytest.raises(InvalidArgumentError):
        canonical_base_url(other, allowed_hosts=ALLOWED)
    with pytest.raises(EgressForbiddenError):
        EgressPolicy(ALLOWED).endpoint(other)


def test_the_longest_base_url_leaves_room_for_the_path() -> None:
    """A URL that could be saved must not turn out too long once the dialect's path follows it."""
    longest = "https://api.example.com/".ljust(URL_CHARACTERS_MAX, "a")
    canonical = canonical_base_url(longest, allowed_hosts=())
    assert not EgressPolicy().endpoint(f"{canonical}/chat/completions").is_exempt

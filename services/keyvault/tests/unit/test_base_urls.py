"""The shape of base URLs: one canonical form, and a typed refusal with a remedy for everything else."""

from __future__ import annotations

import pytest

from keyvault.domain.base_urls import canonical_base_url
from servicekit.errors import InvalidArgumentError

ALLOWED = ("localhost:11434", "10.0.0.7:8080", "gpu.local:443", "[::1]:8443")

CANONICAL = {
    "https://api.example.com": "https://api.example.com",
    "https://api.example.com/": "https://api.example.com",
    "HTTPS://API.Example.COM:443/v1/": "https://api.example.com/v1",
    "https://api.example.com.:8443/A/b": "https://api.example.com:8443/A/b",
    "https://gateway.example.com/tenant/one/v1///": "https://gateway.example.com/tenant/one/v1",
    "https://api.example.com/a%20b": "https://api.example.com/a%20b",
    "https://xn--bcher-kva.example.com": "https://xn--bcher-kva.example.com",
    "http://localhost:11434/v1": "http://localhost:11434/v1",
    "http://10.0.0.7:8080": "http://10.0.0.7:8080",
    "https://gpu.local": "https://gpu.local",
    "https://[::1]:8443/v1": "https://[::1]:8443/v1",
}

REFUSED = {
    "": "BASE_URL_NOT_HTTPS",
    "api.example.com": "BASE_URL_NOT_HTTPS",
    "//api.example.com": "BASE_URL_NOT_HTTPS",
    "https:api.example.com": "BASE_URL_NOT_HTTPS",
    "https:/api.example.com": "BASE_URL_NOT_HTTPS",
    "http://api.example.com": "BASE_URL_NOT_HTTPS",
    "ftp://api.example.com": "BASE_URL_NOT_HTTPS",
    "javascript:alert(1)": "BASE_URL_NOT_HTTPS",
    "https://": "BASE_URL_MALFORMED",
    "https://10.0.0.9[::1]:8443": "BASE_URL_MALFORMED",
    "https://[::1]api.example.com:8443": "BASE_URL_MALFORMED",
    "https://[::2]:8443": "BASE_URL_IS_ADDRESS",
    "https:///v1": "BASE_URL_MALFORMED",
    "https://user:pass@api.example.com": "BASE_URL_HAS_CREDENTIALS",
    "https://@api.example.com": "BASE_URL_HAS_CREDENTIALS",
    "https://api.example.com@evil.example.net": "BASE_URL_HAS_CREDENTIALS",
    "https://api.example.com?x=1": "BASE_URL_HAS_QUERY",
    "https://api.example.com/?": "BASE_URL_HAS_QUERY",
    "https://api.example.com#x": "BASE_URL_HAS_FRAGMENT",
    "https://api.example.com/v1#": "BASE_URL_HAS_FRAGMENT",
    "https://127.0.0.1": "BASE_URL_IS_ADDRESS",
    "https://8.8.8.8/v1": "BASE_URL_IS_ADDRESS",
    "https://2130706433": "BASE_URL_IS_ADDRESS",
    "https://0x7f000001": "BASE_URL_IS_ADDRESS",
    "https://0x7f.0.0.1": "BASE_URL_IS_ADDRESS",
    "https://0X7F.1": "BASE_URL_IS_ADDRESS",
    "https://017700000001": "BASE_URL_IS_ADDRESS",
    "https://0177.0.0.01": "BASE_URL_IS_ADDRESS",
    "https://127.1": "BASE_URL_IS_ADDRESS",
    "https://api.example.com.127.0.0.1": "BASE_URL_IS_ADDRESS",
    "https://[::1]": "BASE_URL_IS_ADDRESS",
    "https://[::ffff:127.0.0.1]": "BASE_URL_IS_ADDRESS",
    "https://[fe80::1%25eth0]": "BASE_URL_IS_ADDRESS",
    "https://localhost": "BASE_URL_IS_PRIVATE",
    "https://LOCALHOST:443": "BASE_URL_IS_PRIVATE",
    "https://localhost.": "BASE_URL_IS_PRIVATE",
    "https://db.localhost": "BASE_URL_IS_PRIVATE",
    "https://printer.local": "BASE_URL_IS_PRIVATE",
    "https://metadata.google.internal": "BASE_URL_IS_PRIVATE",
    "https://kubernetes.default.svc.cluster.local": "BASE_URL_IS_PRIVATE",
    "https://kubernetes.default.svc": "BASE_URL_IS_PRIVATE",
    "https://intranet": "BASE_URL_IS_PRIVATE",
    "https://router.lan": "BASE_URL_IS_PRIVATE",
    "https://nas.home.arpa": "BASE_URL_IS_PRIVATE",
    "https://gpu.local:8443": "BASE_URL_IS_PRIVATE",
    "http://localhost:11435": "BASE_URL_NOT_HTTPS",
    "https://api..example.com": "BASE_URL_MALFORMED",
    "https://-api.example.com": "BASE_URL_MALFORMED",
    "https://api_.example.com": "BASE_URL_MALFORMED",
    "https://api.example.com:0": "BASE_URL_MALFORMED",
    "https://api.example.com:65536": "BASE_URL_MALFORMED",
    "https://api.example.com:x": "BASE_URL_MALFORMED",
    "https://api.example.com/../v1": "BASE_URL_MALFORMED",
    "https://api.example.com/%2e%2e/v1": "BASE_URL_MALFORMED",
    "https://api.example.com/a//b": "BASE_URL_MALFORMED",
    "https://api.example.com/a%2fb": "BASE_URL_MALFORMED",
    "https://api.example.com/%zz": "BASE_URL_MALFORMED",
    "https://api.example.com/v1%0d%0aHost:evil": "BASE_URL_MALFORMED",
    "https://api.example.com/%7f": "BASE_URL_MALFORMED",
    "https://api.example.com/a b": "BASE_URL_MALFORMED",
    "https://api.example.com\\@evil.example.net": "BASE_URL_MALFORMED",
    "https://api.example.com/\r\nHost: evil": "BASE_URL_MALFORMED",
    "https://api.example.com\t": "BASE_URL_MALFORMED",
    "https://аpi.example.com": "BASE_URL_MALFORMED",
    "https://api.example。com": "BASE_URL_MALFORMED",
    "https://①②⑦.0.0.1": "BASE_URL_MALFORMED",
    "https://[::1": "BASE_URL_MALFORMED",
    "https://api.example.com/" + "a" * 2048: "BASE_URL_TOO_LONG",
    "https://" + "a" * 64 + ".example.com": "BASE_URL_MALFORMED",
}


@pytest.mark.parametrize(("text", "canonical"), CANONICAL.items())
def test_a_base_url_has_one_canonical_form(text: str, canonical: str) -> None:
    """What is accepted is brought to one form, which is its own canonical form."""
    assert canonical_base_url(text, allowed_hosts=ALLOWED) == canonical
    assert canonical_base_url(canonical, allowed_hosts=ALLOWED) == canonical


@pytest.mark.parametrize(("text", "reason"), REFUSED.items())
def test_other_shapes_are_refused_with_a_remedy(text: str, reason: str) -> None:
    """Each refusal names the field, a reason for programs, and what to send instead."""
    with pytest.raises(InvalidArgumentError) as caught:
        canonical_base_url(text, allowed_hosts=ALLOWED)
    (violation,) = caught.value.violations
    assert (violation.field, violation.reason) == ("base_url", reason)
    assert violation.description.endswith(".")


def test_the_allow_list_names_a_port() -> None:
    """An exemption of one port is none of another."""
    assert canonical_base_url("http://localhost:11434", allowed_hosts=ALLOWED)
    with pytest.raises(InvalidArgumentError):
        canonical_base_url("http://localhost:11434", allowed_hosts=())

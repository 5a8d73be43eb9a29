"""The egress guard lets nothing through but public https hosts and what the operator exempts."""

import socket

import pytest
from aiohttp.abc import ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from router.domain.refusals import EgressForbiddenError
from router.transports.egress_guard import EgressPolicy, GuardedResolver, check_address, guarded_socket

PRIVATE_ADDRESSES = (
    "0.0.0.0",  # noqa: S104 (refused, not bound to)
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "::ffff:0:127.0.0.1",
    "2606:4700::1%lo",
    "3fff::1",
    "5f00::1",
    "4000::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
)
PUBLIC_ADDRESSES = ("8.8.8.8", "104.18.6.192", "2606:4700::6812:6c0", "2001:4860:4860::8888", "64:ff9b::808:808")


@pytest.mark.parametrize("address", PRIVATE_ADDRESSES)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    """No private, loopback, link-local, metadata, multicast or wrapped address passes."""
    with pytest.raises(EgressForbiddenError):
        check_address(address)


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_public_addresses_pass(address: str) -> None:
    """Public unicast passes, also a public IPv4 address behind NAT64."""
    check_address(address)


@pytest.mark.parametrize("address", ["", "localhost", "1.2.3", "127.1", "0x7f000001"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """A resolver's answer that is no address is not handed to the socket layer to interpret."""
    with pytest.raises(EgressForbiddenError):
        check_address(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "ftp://api.example.com/",
        "file:///etc/passwd",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://0177.0.0.1/",
        "https://0x7f.0.0.1/",
        "https://0x7f000001/",
        "https://2130706433/",
        "https://017700000001/",
        "https://127.0.0.1./",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://10.0.0.5[::1]/",
        "https://[::1]api.example.com/",
        "https://api.example.com[::1]:8443/",
        "https://api.example.com:+443/",
        "https://api.example.com:443:80/",
        "https://api.example.com%00.evil.example/",
        "https://8.8.8.8/",
        "https://example.com./",
        "https://localhost/",
        "https://user:pass@api.example.com/",
        "https://api.example.com@127.0.0.1/",
        "https://api.example.com:0/",
        "https://api.example.com:99999/",
        "https://api.example.com:x/",
        "https://api.example.com/a b",
        "https://api.example.com/\r\nhost: evil",
        "https://api.example.com\\@127.0.0.1/",
        "https://\uff11\uff12\uff17.0.0.1/",
        "https://bücher.example/",
        "https://api..example.com/",
        "https://-a.example.com/",
        "https://%31%32%37.0.0.1/",
        "https:///v1",
        "//api.example.com/v1",
        "https://api.example.com/#fragment",
        "https://api.example.com/" + "a" * 3000,
    ],
)
def test_urls_that_lead_elsewhere_are_refused(url: str) -> None:
    """IP literals in any notation, other schemes, credentials, control characters and odd hosts are refused."""
    with pytest.raises(EgressForbiddenError) as refused:
        EgressPolicy().endpoint(url)
    assert "pass" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["https://api.openai.com/v1/x?y=1", "https://a.b-c.example:8443/", "https://xn--bcher-kva.example/"]
)
def test_public_https_urls_pass(url: str) -> None:
    """A full name over https is not exempt, and passes."""
    assert not EgressPolicy().endpoint(url).is_exempt


def test_an_exempt_host_is_exempt_at_its_port_only() -> None:
    """The allow-list names host and port; neither another port nor a trailing dot inherits the exemption."""
    policy = EgressPolicy(["localhost:11434", "127.0.0.1:8080", "[::1]:8443"])
    assert policy.endpoint("http://localhost:11434/api/chat").is_exempt
    assert policy.endpoint("http://LOCALHOST:11434/api/chat").is_exempt
    assert policy.endpoint("https://127.0.0.1:8080/").is_exempt
    assert policy.endpoint("http://[::1]:8443/v1").is_exempt
    for url in (
        "http://localhost:11435/",
        "http://localhost.:11434/",
        "http://127.0.0.1:8081/",
        "http://127.1:8080/",
        "http://[::1]:8444/",
        "http://10.0.0.5[::1]:8443/",
        "http://[::1]10.0.0.5:8443/",
        "http://localhost:11434@10.0.0.5/",
        "http://10.0.0.5:11434[localhost]:11434/",
    ):
        with pytest.raises(EgressForbiddenError):
            policy.endpoint(url)


def _answer(*addresses: str) -> list[ResolveResult]:
    return [
        ResolveResult(hostname="api.example.com", host=each, port=443, family=socket.AF_INET, proto=0, flags=0)
        for each in addresses
    ]


async def test_a_resolver_that_mixes_public_and_private_is_refused_as_a_whole() -> None:
    """One private address among public ones refuses the name."""

    async def lying(host: str, port: int) -> list[ResolveResult]:
        assert (host, port) == ("api.example.com", 443)
        return _answer("8.8.8.8", "10.0.0.1")

    with pytest.raises(EgressForbiddenError):
        await GuardedResolver(lying).resolve("api.example.com", 443)


async def test_an_honest_resolver_passes() -> None:
    """Public addresses come through unchanged."""

    async def honest(_host: str, _port: int) -> list[ResolveResult]:
        return _answer("8.8.8.8", "8.8.4.4")

    results = await GuardedResolver(honest).resolve("api.example.com", 443)
    assert [result["host"] for result in results] == ["8.8.8.8", "8.8.4.4"]


def test_the_socket_of_a_private_address_is_never_made() -> None:
    """The second look, at connect time, refuses what slipped past the first."""
    with pytest.raises(EgressForbiddenError):
        guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 443)))


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_an_ipv4_address_is_judged_alike_in_every_wrapping(value: int) -> None:
    """Mapping or translating an address into IPv6 never changes the verdict."""
    dotted = ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0))

    def is_refused(address: str) -> bool:
        try:
            check_address(address)
        except EgressForbiddenError:
            return True
        return False

    assert is_refused(dotted) == is_refused(f"::ffff:{dotted}") == is_refused(f"64:ff9b::{dotted}")
    for literal in (dotted, str(value), hex(value), f"0{value:o}"):
        with pytest.raises(EgressForbiddenError):
            EgressPolicy().endpoint(f"https://{literal}/")

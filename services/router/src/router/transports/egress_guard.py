"""Decides where the Router may connect: public https hosts, and what an operator's allow-list names.

Every address is judged twice: when a name is resolved and again when the socket for it is made,
so that neither a lying resolver nor a name that is rebound between two look-ups leads inside.
This module knows names, addresses and URLs; it must not know providers, keys or requests.
"""

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import SplitResult, urlsplit

from aiohttp.abc import AbstractResolver, ResolveResult
from typing_extensions import override

from router.domain.refusals import EgressForbiddenError

AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[object, ...]]
Resolve = Callable[[str, int], Awaitable[list[ResolveResult]]]

# A base URL as long as KeyVault takes one, and the dialect's path after it.
URL_LENGTH_MAX = 2048 + 256
_NAME_LENGTH_MAX = 253
# Control characters, spaces, and the backslash that browsers read as a slash.
_UNSPEAKABLE = re.compile(r"[\x00-\x20\x7f\\]")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII | re.IGNORECASE)
# The standard library takes the brackets of an IPv6 address anywhere, and would read another host than aiohttp does:
# `10.0.0.1[::1]` as `::1`, which an operator may have exempted.
_NETLOC = re.compile(r"(?:\[[0-9a-f:.]+\]|[^\[\]@:%]+)(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
# The last label of a host decides: WHATWG's URL parser reads `127.1`, `0x7f.1` and `2130706433` as
# IPv4 because they end in a number, and so do the libc functions below a resolver.
_NUMERIC_LABEL = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)", re.ASCII | re.IGNORECASE)

# IANA's special-purpose registries, written out: `ipaddress.is_global` changes between patch
# releases of Python, and knows nothing of clouds that answer on public addresses.
_FORBIDDEN_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's WireServer: metadata on a public address.
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Only 2000::/3 is handed out for unicast; the rest of IPv6 is refused as a whole.
_UNICAST_V6 = IPv6Network("2000::/3")
_FORBIDDEN_V6 = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
_NAT64 = IPv6Network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a URL leads, and which rules hold there."""

    host: str
    port: int
    is_exempt: bool


class EgressPolicy:
    """The rules of where the Router may connect, with the operator's exemptions."""

    def __init__(self, allowed_hosts: Iterable[str] = ()) -> None:
        """Take `host:port` entries that may use http and private addresses; an IPv6 address stands in brackets."""
        self._allowed = frozenset(entry.lower() for entry in allowed_hosts)

    def endpoint(self, url: str) -> Endpoint:
        """Return where `url` leads.

        Raises:
            EgressForbiddenError: the URL is malformed, not https, carries credentials, or names an address.
        """
        parts = _split(url)
        host = parts.hostname or ""
        port = _port(parts)
        shown_host = f"[{host}]" if ":" in host else host
        is_exempt = f"{shown_host}:{port}" in self._allowed
        if is_exempt:
            return Endpoint(host=host, port=port, is_exempt=True)
        if parts.scheme != "https":
            raise EgressForbiddenError("The address must use https.", rule="SCHEME")
        _check_name(host)
        return Endpoint(host=host, port=port, is_exempt=False)


def check_address(address: str) -> None:
    """Check that a resolved address is public unicast.

    Raises:
        EgressForbiddenError: the address is private, loopback, link-local, metadata, multicast or
            reserved, or carries such an IPv4 address inside an IPv6 one.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise EgressForbiddenError("The resolver answered with something that is no address.", rule="ADDRESS") from None
    if _is_forbidden(parsed):
        raise EgressForbiddenError("The host leads to an address that is not public.", rule="ADDRESS")


class GuardedResolver(AbstractResolver):
    """A resolver that refuses a name as a whole when any of its addresses is not public.

    Dropping only the bad addresses would let an attacker pair one public with one private address
    and learn from the timing which of them answers.
    """

    def __init__(self, resolve: Resolve) -> None:
        """Wrap the function that really asks the DNS."""
        self._resolve = resolve

    @override
    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        results = await self._resolve(host, port)
        for result in results:
            check_address(result["host"])
        return results

    @override
    async def close(self) -> None:
        """Hold nothing that needs closing."""


def guarded_socket(info: AddressInfo) -> socket.socket:
    """Make the socket for one address, after a last look at where it leads."""
    family, kind, protocol, _, address = info
    check_address(str(address[0]))
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)  # noqa: FBT003 (the standard library takes it by position only)
    return made


def _split(url: str) -> SplitResult:
    if len(url) > URL_LENGTH_MAX or not url.isascii() or _UNSPEAKABLE.search(url):
        raise EgressForbiddenError("The address holds characters that no address may hold.", rule="SYNTAX")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise EgressForbiddenError("The address cannot be parsed.", rule="SYNTAX") from None
    if parts.username is not None or parts.password is not None:
        raise EgressForbiddenError("The address must not carry credentials.", rule="CREDENTIALS")
    if not _NETLOC.fullmatch(parts.netloc):
        raise EgressForbiddenError("The address must name a host, and a port or none.", rule="SYNTAX")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.fragment:
        raise EgressForbiddenError("The address must be https, with a host and no fragment.", rule="SYNTAX")
    return parts


def _port(parts: SplitResult) -> int:
    port = parts.port
    if port is None:
        return 443 if parts.scheme == "https" else 80
    if port == 0:
        raise EgressForbiddenError("The port must be between 1 and 65535.", rule="SYNTAX")
    return port


def _check_name(host: str) -> None:
    labels = host.split(".")
    if ":" in host or _NUMERIC_LABEL.fullmatch(labels[-1]):
        raise EgressForbiddenError("The address must name a host, not an IP address.", rule="IP_LITERAL")
    if len(labels) == 1 or len(host) > _NAME_LENGTH_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        # An empty last label is a trailing dot, which would make two spellings of one host.
        raise EgressForbiddenError("The host must be a full name such as api.example.com.", rule="HOST")


def _is_forbidden(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return any(address in network for network in _FORBIDDEN_V4)
    inner = address.ipv4_mapped
    if inner is None and address in _NAT64:
        inner = IPv4Address(int(address) & 0xFFFFFFFF)
    if inner is not None:
        return _is_forbidden(inner)
    # A zone binds an address to one interface of this machine, which no public one needs.
    is_bound = address.scope_id is not None
    return is_bound or address not in _UNICAST_V6 or any(address in network for network in _FORBIDDEN_V6)

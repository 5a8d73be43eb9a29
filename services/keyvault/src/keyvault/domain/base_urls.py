"""The shape of a base URL: what may be saved, and the one canonical form that envelopes are bound to.

Only the shape is judged here. What needs the network (where a name resolves to, where a server redirects to) is judged
by the Router's egress guard and by validation.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import SplitResult, urlsplit

from servicekit.errors import FieldViolation, InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Collection

URL_CHARACTERS_MAX: Final = 2048
_HOST_CHARACTERS_MAX: Final = 253
_PORT_MAX: Final = 65535
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_LABEL: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_NETLOC: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%[^\[\]]*)?\]|[^\[\]:]*)(?::[^\[\]:]*)?")
"""The standard library takes the brackets of an IPv6 address anywhere and forgets what stands around them."""

_PATH: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_ENCODED_CONTROL: Final = re.compile(r"%(?:[01][0-9A-Fa-f]|7[Ff])")
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]*")
_PRIVATE_SUFFIXES: Final = (
    "localhost",
    "local",
    "localdomain",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "home.arpa",
    "arpa",
    "test",
    "example",
    "invalid",
    "onion",
    "svc",
)
"""Names that no public resolver may answer for: RFC 6761, RFC 6762 appendix G, RFC 8375, ICANN's `internal`, and the
short names of Kubernetes' services, which a cluster's search path completes."""


def canonical_base_url(text: str, *, allowed_hosts: Collection[str], field: str = "base_url") -> str:
    """Return the canonical form of `text`: lower-case scheme and host, no default port, no slash at the end.

    Args:
        text: What the owner sent.
        allowed_hosts: `host:port` pairs that the operator exempts from the rules on private names, addresses and http;
            an IPv6 address stands in brackets.
        field: Path of the field, for the error.

    Raises:
        InvalidArgumentError: naming what is wrong and what to send instead.
    """
    parts = _split(text, field)
    host, port = _host_and_port(parts, field)
    shown_host = f"[{host}]" if ":" in host else host
    if f"{shown_host}:{port}" not in allowed_hosts:
        _check_public(parts.scheme, host, field)
    path = _canonical_path(parts.path, field)
    shown_port = "" if port == _DEFAULT_PORTS[parts.scheme] else f":{port}"
    return f"{parts.scheme}://{shown_host}{shown_port}{path}"


def _split(text: str, field: str) -> SplitResult:
    if len(text) > URL_CHARACTERS_MAX:
        _refuse(field, "BASE_URL_TOO_LONG", f"Send at most {URL_CHARACTERS_MAX} characters.")
    if not _PRINTABLE.fullmatch(text) or "\\" in text:
        # Non-ASCII hosts too: a look-alike name is for its owner to write in its `xn--` form, visibly.
        _refuse(
            field, "BASE_URL_MALFORMED", "Send printable ASCII without spaces or backslashes; write the host as xn--…."
        )
    try:
        parts = urlsplit(text)
    except ValueError:
        _refuse(field, "BASE_URL_MALFORMED", "Send a URL such as https://api.example.com/v1.")
    if parts.scheme not in _DEFAULT_PORTS or not text[len(parts.scheme) :].startswith("://"):
        _refuse(field, "BASE_URL_NOT_HTTPS", "Send a URL that begins with https://.")
    if "@" in parts.netloc:
        _refuse(field, "BASE_URL_HAS_CREDENTIALS", "Leave user and password out; the secret has a field of its own.")
    if "?" in text:
        _refuse(field, "BASE_URL_HAS_QUERY", "Leave the query (everything from '?') out.")
    if "#" in text:
        _refuse(field, "BASE_URL_HAS_FRAGMENT", "Leave the fragment (everything from '#') out.")
    return parts


def _host_and_port(parts: SplitResult, field: str) -> tuple[str, int]:
    try:
        port = parts.port
    except ValueError:
        _refuse(field, "BASE_URL_MALFORMED", f"Send a port from 1 to {_PORT_MAX}, or none.")
    host = (parts.hostname or "").removesuffix(".")
    if not host or not _NETLOC.fullmatch(parts.netloc):
        _refuse(field, "BASE_URL_MALFORMED", "Name a host, such as https://api.example.com/v1.")
    if port == 0:
        _refuse(field, "BASE_URL_MALFORMED", f"Send a port from 1 to {_PORT_MAX}, or none.")
    return host, port if port is not None else _DEFAULT_PORTS[parts.scheme]


def _check_public(scheme: str, host: str, field: str) -> None:
    labels = host.split(".")
    if ":" in host or all(_NUMERIC_LABEL.fullmatch(label) for label in labels[-1:]):
        # Every form in which a resolver reads an address ends in a number: 127.1, 0x7f000001, 017700000001, 2130706433.
        _refuse(field, "BASE_URL_IS_ADDRESS", "Name the host instead of its IP address.")
    if scheme != "https":
        _refuse(
            field,
            "BASE_URL_NOT_HTTPS",
            "Send a URL that begins with https://; http is for hosts that the operator allows.",
        )
    if len(host) > _HOST_CHARACTERS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        _refuse(field, "BASE_URL_MALFORMED", "Send a valid host name, such as api.example.com.")
    is_private = any(host == suffix or host.endswith(f".{suffix}") for suffix in _PRIVATE_SUFFIXES)
    if is_private or len(labels) == 1:
        _refuse(field, "BASE_URL_IS_PRIVATE", "Name a public host, or ask the operator to allow this host and port.")


def _canonical_path(path: str, field: str) -> str:
    if not _PATH.fullmatch(path) or _ENCODED_CONTROL.search(path):
        _refuse(field, "BASE_URL_MALFORMED", "Percent-encode unusual characters of the path.")
    segments = path.split("/")
    lowered = [segment.lower().replace("%2e", ".") for segment in segments]
    if "//" in path.rstrip("/") or any(segment in {".", ".."} for segment in lowered) or "%2f" in path.lower():
        # Servers disagree on what these mean, and on a shared gateway the path decides who receives the secret.
        _refuse(field, "BASE_URL_MALFORMED", "Send a path without '//', '.', '..' and encoded slashes.")
    return path.rstrip("/")


def _refuse(field: str, reason: str, remedy: str) -> NoReturn:
    raise InvalidArgumentError(violations=[FieldViolation(field=field, reason=reason, description=remedy)])

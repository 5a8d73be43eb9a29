"""Who calls, and what they may call.

Identity is the one URI in the subject alternative names of the client's certificate (`peer_uri` of gRPC's auth
context; the list of all alternative names would also return DNS names and e-mail addresses with the same text). gRPC
hands it over as C text, which ends at a NUL; so each certificate is also parsed here, once, and must say the same. A
policy file, shipped beside each service's `app.py`, gives URIs their roles and RPCs their roles:

    [roles]
    router = ["spiffe://byok.local/ns/*/sa/router"]

    [allow]
    "byok.keyvault.v1.LeaseService/AcquireLeases" = ["router"]

`*` stands for the trust domain or for one path segment, as SPIFFE spells them; a service may be told the one trust
domain whose callers it knows. Whatever is not listed is refused: an unlisted RPC, an empty list, a caller without a
role. A list that names an RPC or a role that does not exist is a mistake that would lock somebody out or in: the
service does not start.
"""

import contextvars
import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from google.protobuf.descriptor import ServiceDescriptor

from servicekit.errors import CallerNotAllowedError

Role = str

# Distinct certificates a process meets are few; the bound only keeps an attacker with a signing CA from growing the
# cache.
_CALLERS_MAX: Final = 10_000

# A trust domain or a segment of a SPIFFE id (SPIFFE-ID, sections 2.1 and 2.2), but "." and "..": no character in it can
# end a path, begin a query, or stand for another one.
_ANY_SEGMENT: Final = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a certificate chain, its private key and the CA that peers are checked against lie, in PEM."""

    certificate: Path
    private_key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made the current call, as its certificate says."""

    uri: str
    roles: frozenset[Role]


class PolicyError(Exception):
    """The access policy contradicts itself or the contract; the service must not start with it."""


class AccessPolicy:
    """Who may call what."""

    def __init__(self, *, roles: Mapping[Role, Sequence[str]], allow: Mapping[str, Sequence[Role]]) -> None:
        """Make a policy from its two tables; `load` is what services use, because it also checks them."""
        self._patterns = [(role, _pattern(uri)) for role, uris in roles.items() for uri in uris]
        self._allow = {f"/{rpc}": frozenset(names) for rpc, names in allow.items()}
        self._callers: dict[bytes, Caller] = {}
        self._trust_domain: str | None = None

    @classmethod
    def load(cls, source: Path | str, *, services: Sequence[ServiceDescriptor]) -> "AccessPolicy":
        """Read a policy from a TOML file, or from TOML text, and check it against the services that are served.

        Raises:
            PolicyError: It is malformed, or names an RPC or a role that does not exist.
        """
        text = source.read_text(encoding="utf-8") if isinstance(source, Path) else source
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            message = f"the access policy is not TOML: {error}"
            raise PolicyError(message) from error
        roles, allow = _tables(document)
        served = {f"{service.full_name}/{method.name}" for service in services for method in service.methods}
        faults = [
            *sorted(f"unknown RPC {rpc}" for rpc in set(allow) - served),
            *sorted(
                f"unknown role {role} for {rpc}" for rpc, names in allow.items() for role in set(names) - set(roles)
            ),
        ]
        if faults:
            message = f"the access policy names what does not exist: {'; '.join(faults)}"
            raise PolicyError(message)
        return cls(roles=roles, allow=allow)

    def within(self, trust_domain: str | None) -> "AccessPolicy":
        """Return this policy for callers of one trust domain; of any, when it is None."""
        policy = copy.copy(self)
        policy._trust_domain = trust_domain  # noqa: SLF001 (a copy of its own)
        policy._callers = {}  # noqa: SLF001 (as above)
        return policy

    @property
    def listed(self) -> frozenset[str]:
        """The RPCs that somebody may call, as `package.Service/Method`."""
        return frozenset(rpc.removeprefix("/") for rpc, roles in self._allow.items() if roles)

    def allowed_roles(self, method: str) -> frozenset[Role]:
        """Return the roles that may call `method` (`/package.Service/Method`); none, when it is not listed."""
        return self._allow.get(method, frozenset())

    def identify(self, peer_uris: Sequence[bytes] | None, certificate: bytes) -> Caller:
        """Return the caller with these URIs, according to gRPC, and this certificate in PEM.

        Raises:
            CallerNotAllowedError: There is not exactly one URI, the certificate says another, or it has no role.
        """
        if not peer_uris or len(peer_uris) != 1:
            raise CallerNotAllowedError(
                "The client's certificate must carry exactly one URI as its subject alternative name.",
                uris=len(peer_uris or ()),
            )
        caller = self._callers.get(certificate)
        if caller is None:
            caller = self._resolve(peer_uris[0], certificate)
        return caller

    def _resolve(self, peer_uri: bytes, certificate: bytes) -> Caller:
        uri = peer_uri.decode("ascii", "backslashreplace")
        if self._trust_domain is not None and not uri.startswith(f"spiffe://{self._trust_domain}/"):
            raise CallerNotAllowedError("The client's certificate is of another trust domain.", caller=uri)
        if _uris_in(certificate) != [uri]:
            raise CallerNotAllowedError("The client's certificate says another URI than it seems to.", caller=uri)
        roles = frozenset(role for role, pattern in self._patterns if pattern.fullmatch(uri))
        if not roles:
            raise CallerNotAllowedError("The client's certificate names no role of this service.", caller=uri)
        if len(self._callers) >= _CALLERS_MAX:
            self._callers.clear()
        caller = self._callers[certificate] = Caller(uri=uri, roles=roles)
        return caller


CURRENT_CALLER: Final[contextvars.ContextVar[Caller]] = contextvars.ContextVar("servicekit_caller")


def current_caller() -> Caller:
    """Return who made the call that is being served.

    Raises:
        LookupError: No call is being served here.
    """
    return CURRENT_CALLER.get()


def _uris_in(certificate: bytes) -> list[str]:
    """Return the URIs in a certificate's alternative names; none, when it is not understood."""
    try:
        names = x509.load_pem_x509_certificate(certificate).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        return []
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _pattern(uri: str) -> re.Pattern[str]:
    return re.compile(_ANY_SEGMENT.join(re.escape(part) for part in uri.split("*")))


def _tables(document: Mapping[str, object]) -> tuple[dict[Role, list[str]], dict[str, list[Role]]]:
    if unknown := set(document) - {"roles", "allow"}:
        message = f"the access policy has unknown tables: {', '.join(sorted(unknown))}"
        raise PolicyError(message)
    return _table(document, "roles"), _table(document, "allow")


def _table(document: Mapping[str, object], name: str) -> dict[str, list[str]]:
    table = document.get(name)
    if not isinstance(table, dict):
        message = f"the access policy lacks the table [{name}]"
        raise PolicyError(message)
    for key, values in table.items():
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            message = f"[{name}] {key} must be a list of names"
            raise PolicyError(message)
    return table

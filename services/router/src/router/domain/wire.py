"""What goes to a provider and what comes back, as bytes: the form in which codecs and transports meet.

No key is ever here: a request names the scheme by which the transport inserts it at the last moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthScheme:
    """The header that carries the key: ``header: <prefix><key>``."""

    header: str
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireRequest:
    """One HTTP request without its secret.

    Attributes:
        method: ``GET`` or ``POST``.
        url: Absolute; the route's base URL and the dialect's path.
        headers: Lower-case names; everything but the key, ``host`` and ``content-length``.
        body: Empty for ``GET``.
        auth: How the transport inserts the key; ``None`` when the endpoint takes none.
        is_streaming: Whether the answer comes in events.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes
    auth: AuthScheme | None
    is_streaming: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WireResponse:
    """One HTTP answer, whole.

    Attributes:
        status: The HTTP status.
        headers: Lower-case names.
        body: Decompressed.
        receive_time: When the head arrived; dates in ``retry-after`` are measured from it.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    receive_time: datetime

"""Turns a vendor's error answer into a normalized error: the body first, then the status.

A vendor's table is a list of rules; the first that matches decides. Words of a message are matched only from its
beginning and only against sentences that the vendor itself writes, because messages also echo prompts and keys.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

from router.domain.errors import (
    BadRequestError,
    ContextExceededError,
    KeyRejectedError,
    MalformedAnswerError,
    ModelGoneError,
    NoCreditError,
    PermissionRefusedError,
    ProviderError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    ThrottledError,
)
from router.providers.json_reading import (
    Json,
    UnreadableError,
    object_of,
    optional_count_of,
    read_object,
    read_value,
    text_of,
)
from router.providers.retry_times import retry_after, should_retry, wish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.domain.routes import Route
    from router.domain.wire import WireResponse

_MESSAGE_MAX: Final = 2_000
_OK: Final = 200
_REDIRECT: Final = 300
_SERVER_ERROR: Final = 500
_CLIENT_ERROR: Final = 400


@dataclass(frozen=True, slots=True)
class Fault:
    """What a vendor's error answer says, read but not judged; never logged.

    Attributes:
        status: The status, or inside a success the one that the body states.
        kind: The error's type.
        code: The error's code.
        message: Its words.
        is_readable: Whether the body is a JSON object.
        upstream: What the vendor behind the vendor said, where its words are handed on (OpenRouter).
    """

    status: int
    kind: str = ""
    code: str = ""
    message: str = ""
    is_readable: bool = True
    upstream: Fault | None = None


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One row of a vendor's table; unset conditions match anything.

    Attributes:
        name: What it is called in logs and metrics.
        error: The normalized error.
        statuses: HTTP statuses.
        kinds: Values of the error's type.
        codes: Values of the error's code.
        message: A regular expression for the beginning of the message.
        retryable: Set where this row differs from its error's own answer.
    """

    name: str
    error: type[ProviderError]
    statuses: frozenset[int] = field(default_factory=frozenset)
    kinds: frozenset[str] = field(default_factory=frozenset)
    codes: frozenset[str] = field(default_factory=frozenset)
    message: str = ""
    retryable: bool | None = None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.message, re.IGNORECASE)

    def matches(self, fault: Fault) -> bool:
        """Say whether every condition that is set holds."""
        return (
            (not self.statuses or fault.status in self.statuses)
            and (not self.kinds or fault.kind in self.kinds)
            and (not self.codes or fault.code in self.codes)
            and (not self.message or self._pattern.match(fault.message[:_MESSAGE_MAX]) is not None)
        )


def rule(
    name: str,
    error: type[ProviderError],
    *,
    status: Sequence[int] = (),
    kind: Sequence[str] = (),
    code: Sequence[str] = (),
    message: str = "",
) -> Rule:
    """Return a row; a table reads better with short names."""
    return Rule(
        name=name,
        error=error,
        statuses=frozenset(status),
        kinds=frozenset(kind),
        codes=frozenset(code),
        message=message,
    )


STATUS_RULES: Final = (
    rule("status.401", KeyRejectedError, status=[401]),
    rule("status.402", NoCreditError, status=[402]),
    rule("status.403", PermissionRefusedError, status=[403]),
    rule("status.404", ModelGoneError, status=[404, 410]),
    rule("status.408", ProviderUnavailableError, status=[408, 409, 425]),
    rule("status.413", ContextExceededError, status=[413]),
    rule("status.429", ThrottledError, status=[429]),
    # The request was passed on and nobody knows whether it was worked off, so it may have been billed.
    rule("status.504", ProviderTimeoutError, status=[504, 524]),
    rule("status.503", ProviderOverloadedError, status=[498, 503, 529]),
)
"""What statuses mean where the body says nothing that is known."""

_UNREADABLE_STATUS_RULES: Final = (
    # A proxy's or a gateway's page is no word of the vendor's on the key, so it must not change the key's state. Only
    # 401 does: some hosts answer it with plain text or nothing, and whatever stands there, the key opens nothing.
    rule("page.401", KeyRejectedError, status=[401]),
    rule("page.403", PermissionRefusedError, status=[403]),
    rule("page.404", BadRequestError, status=[404, 405]),
    *(row for row in STATUS_RULES if not row.statuses & {401, 402, 403, 404}),
)


class FailureTable:
    """A vendor's rules, with the statuses' own meaning as the last resort."""

    def __init__(self, *rules: Rule, upstream: tuple[Rule, ...] = ()) -> None:
        """Take the vendor's rows, and those for what a vendor behind it said."""
        self._rules = (*rules, *STATUS_RULES)
        self._upstream = upstream

    def classify(self, response: WireResponse, provider: str) -> ProviderError:
        """Return the error of an answer whose status or body is one."""
        body = _body(response.body)
        fault = read_fault(body, response.status)
        found = self._find(fault)
        status = fault.status
        # An error inside a success has its own status, and the header's wishes belong to it.
        inside = response.status < _CLIENT_ERROR
        after = (
            wish(response.headers, body or {}, response.receive_time) if inside else retry_after(response, body or {})
        )
        error = found.error if found else _by_class(status)
        said = should_retry(response.headers)
        made = error(
            provider=provider,
            rule=found.name if found else f"status.{status}",
            status=response.status,
            retryable=said if said is not None else (found.retryable if found else None),
        )
        made.retry_after = after if made.retryable or made.cools_key_down else None
        return made

    def classify_event(self, event: Json, response: WireResponse, provider: str) -> ProviderError:
        """Return the error that came as an event inside a stream; what was streamed before may have been billed."""
        fault = read_fault(event, 0)
        found = self._find(fault)
        error = found.error if found else _by_class(fault.status)
        return error(
            provider=provider,
            rule=found.name if found else "stream.error",
            status=response.status,
            retry_after=wish({}, event, response.receive_time)
            if error.retryable_by_default or error.cools_key_down
            else None,
            retryable=found.retryable if found else None,
            may_have_been_billed=True,
        )

    def _find(self, fault: Fault) -> Rule | None:
        rules = self._rules if fault.is_readable else _UNREADABLE_STATUS_RULES
        behind = fault.upstream
        above = () if behind is None else tuple(row for row in self._upstream if row.matches(behind))
        return above[0] if above else next((row for row in rules if row.matches(fault)), None)


def read_fault(body: Json | None, status: int) -> Fault:
    """Read the shapes in which vendors state errors.

    ``{"error": {"type", "code", "message"}}``, ``{"error": "words"}``, ``{"message", "type", "code"}``,
    ``{"detail": "words"}``, and Anthropic's ``{"type": "error", "error": {…, "details": {"error_code"}}}``.
    """
    if body is None:
        return Fault(status=status, is_readable=False)
    fault = _stated(body, status)
    raw = object_of(object_of(body, "error"), "metadata").get("raw")
    if isinstance(raw, str) and raw:
        raw = _body(raw.encode("utf-8", "replace")) or {"message": raw}
    return replace(fault, upstream=_stated(raw, fault.status)) if isinstance(raw, dict) else fault


def _stated(body: Json, status: int) -> Fault:
    error = object_of(body, "error")
    source = error or body
    message = (
        text_of(source, "message") or text_of(body, "error") or text_of(body, "detail") or text_of(body, "message")
    )
    code = text_of(object_of(source, "details"), "error_code") or text_of(source, "code")
    number = optional_count_of(source, "code")
    inner = status
    if number is not None and _CLIENT_ERROR <= number < _SERVER_ERROR + 100:
        inner = number if status < _CLIENT_ERROR else status
    return Fault(status=inner, kind=text_of(source, "type"), code=code, message=message)


def is_error_body(body: Json) -> bool:
    """Say whether a body that came with a success states an error instead.

    Cerebras and vLLM state it without an envelope: a message in words, where an answer has its choices.
    """
    error = body.get("error")
    if isinstance(error, dict | str) and error:
        return True
    return isinstance(body.get("message"), str) and "choices" not in body


def success_body(response: WireResponse, route: Route, table: FailureTable) -> Json:
    """Return the JSON object of a success.

    Raises:
        ProviderError: The status or the body is an error, or the body is no JSON object.
    """
    if not _OK <= response.status < _REDIRECT:
        raise table.classify(response, route.provider)
    try:
        body = read_object(response.body)
    except UnreadableError:
        raise malformed(response, route.provider, "body") from None
    if is_error_body(body):
        raise table.classify(response, route.provider)
    return body


def malformed(response: WireResponse, provider: str, why: str) -> MalformedAnswerError:
    """Return the error for a success that cannot be read; ``why`` is a word of ours."""
    return MalformedAnswerError(provider=provider, rule=f"malformed.{why}", status=response.status)


def _body(data: bytes) -> Json | None:
    try:
        value = read_value(data)
    except UnreadableError:
        value = _first_event(data)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = value[0]
    return value if isinstance(value, dict) else None


def _first_event(data: bytes) -> object:
    """Return the first event of an error that came as a stream, with the status of an error."""
    for line in data.splitlines():
        if line.startswith(b"data:"):
            try:
                return read_value(line.removeprefix(b"data:"))
            except UnreadableError:
                return None
    return None


def _by_class(status: int) -> type[ProviderError]:
    if _CLIENT_ERROR <= status < _SERVER_ERROR:
        return BadRequestError
    return ProviderUnavailableError

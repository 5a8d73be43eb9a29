"""What all stream decoders share: cutting, stopping at the first error, and the end of a stream.

A dialect's decoder says what an event adds and what the whole is; this base never raises from ``feed``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

from typing_extensions import override

from router.domain.codecs import StreamDecoder
from router.domain.errors import AnswerTruncatedError, MalformedAnswerError
from router.domain.usage import Usage, UsageFlag
from router.providers.event_streams import EventCutter, EventTooLargeError, LineCutter, ServerSentEvent
from router.providers.json_reading import Json, UnreadableError, read_object

if TYPE_CHECKING:
    from router.domain.completions import Completion, Delta
    from router.domain.errors import ProviderError
    from router.domain.routes import Route
    from router.domain.wire import WireResponse

OK: Final = 200
_SNIFFED_BYTES: Final = 64
_CLIENT_ERROR: Final = 400
_EVENT_BEGINNINGS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
_WHOLE_BYTES_MAX: Final = 16 * 1024 * 1024


class Cutter(Protocol):
    """Cuts bytes into events."""

    def feed(self, chunk: bytes, /) -> list[ServerSentEvent]:
        """Return the events that the chunk completes."""
        ...

    def finish(self) -> list[ServerSentEvent]:
        """Return what the end of the stream completes."""
        ...


class JsonLines:
    """Lines of JSON, as events without a name."""

    def __init__(self) -> None:
        self._lines = LineCutter(bare_cr=False)

    def feed(self, chunk: bytes, /) -> list[ServerSentEvent]:
        """Return the lines that the chunk completes; empty ones are passed over."""
        return [ServerSentEvent("", line) for line in self._lines.cut(chunk) if line.strip()]

    def finish(self) -> list[ServerSentEvent]:
        """Return the last line where it has no end."""
        rest = self._lines.remainder()
        return [ServerSentEvent("", rest)] if rest.strip() else []


class BaseDecoder(StreamDecoder):
    """A decoder's life; subclasses give meaning to events."""

    def __init__(self, response: WireResponse, route: Route, *, cutter: Cutter | None = None) -> None:
        self._response = response
        self._route = route
        self._cutter: Cutter = cutter or EventCutter()
        self._failure: ProviderError | None = None
        self._is_complete = False
        self._text_bytes = 0
        # Some hosts answer a streaming request with one JSON document: an error inside a 200, or no streaming at all.
        # What comes with an error's status is a document as well, or a gateway's page, or nothing.
        self._whole = bytearray() if _is_json(response) or response.status >= _CLIENT_ERROR else None

    @property
    @override
    def failure(self) -> ProviderError | None:
        return self._failure

    @property
    @override
    def is_complete(self) -> bool:
        return self._is_complete

    @property
    @override
    def usage(self) -> Usage:
        usage = self._usage()
        return usage if self._is_complete or usage.is_missing else usage.flagged(UsageFlag.PARTIAL)

    @property
    @override
    def received_text_bytes(self) -> int:
        return self._text_bytes

    @override
    def feed(self, chunk: bytes, /) -> list[Delta]:
        if self._whole is not None:
            self._gather(chunk)
            return []
        if self._failure is not None or self._is_complete:
            return []
        try:
            return self._take_all(self._cutter.feed(chunk))
        except EventTooLargeError:
            self._fail_malformed("event_too_large")
            return []

    @override
    def finish(self) -> Completion:
        if self._whole is not None and self._failure is None:
            return self._parse_whole(replace(self._response, body=bytes(self._whole)))
        if self._failure is None and not self._is_complete:
            self._take_last()
        if self._failure is not None:
            self._failure.usage = self.usage
            raise self._failure
        if not self._is_complete and not self._may_end_here():
            cut = AnswerTruncatedError(provider=self._route.provider, rule="stream.cut", status=self._response.status)
            cut.usage = self.usage
            raise cut
        self._is_complete = True
        return self._completion()

    def _take_all(self, events: list[ServerSentEvent]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            if self._failure is not None or self._is_complete:
                break
            try:
                deltas.extend(self._take(event))
            except UnreadableError:
                self._fail_malformed("event")
        for delta in deltas:
            self._text_bytes += len(delta.text) if delta.text.isascii() else len(delta.text.encode("utf-8", "replace"))
        return deltas

    def _take_last(self) -> None:
        """Take what the end of the stream left over; half an event means that the stream was cut."""
        try:
            events = self._cutter.finish()
        except EventTooLargeError:
            self._fail_malformed("event_too_large")
            return
        for event in events:
            try:
                self._take(event)
            except UnreadableError:
                return

    def _take(self, event: ServerSentEvent) -> list[Delta]:
        return self._take_object(event.name, read_object(event.data))

    def _gather(self, chunk: bytes) -> None:
        if self._whole is not None:
            self._whole += chunk
            if len(self._whole) > _WHOLE_BYTES_MAX:
                self._fail_malformed("body_too_large")

    def _fail_malformed(self, why: str) -> None:
        self._failure = MalformedAnswerError(
            provider=self._route.provider, rule=f"malformed.{why}", status=self._response.status
        )

    def _take_object(self, name: str, event: Json) -> list[Delta]:
        """Take one event; set ``_failure`` or ``_is_complete`` where it says so."""
        raise NotImplementedError

    def _usage(self) -> Usage:
        """Return the last counts seen."""
        raise NotImplementedError

    def _may_end_here(self) -> bool:
        """Say whether a stream without its end mark has nevertheless said all."""
        raise NotImplementedError

    def _completion(self) -> Completion:
        """Return the whole answer."""
        raise NotImplementedError

    def _parse_whole(self, response: WireResponse) -> Completion:
        """Parse an answer that came as one document."""
        raise NotImplementedError


def is_stream(response: WireResponse) -> bool:
    """Say whether a body that should be one document is a stream of events instead; some hosts stream unasked."""
    return response.body[:_SNIFFED_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_EVENT_BEGINNINGS)


def as_stream(response: WireResponse) -> WireResponse:
    """Return the head of a response whose content type must not decide how its body is read."""
    return replace(response, headers={}, body=b"")


def replayed(decoder: StreamDecoder, response: WireResponse) -> Completion:
    """Return the answer that a stream held in one body adds up to.

    Raises:
        ProviderError: As ``StreamDecoder.finish``.
    """
    decoder.feed(response.body)
    return decoder.finish()


def _is_json(response: WireResponse) -> bool:
    kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
    return kind in {"application/json", "application/problem+json"}

"""Calls to a chat model and their answers, in one form for all vendors.

What a vendor says that has no place here stays with the codec; what must come back to the vendor unchanged (thinking
signatures, encrypted reasoning) travels as an opaque ``provider_state`` that nobody else reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from catalogue.models import Effort
from router.domain.usage import Usage


class Role(StrEnum):
    """Who speaks in a message."""

    USER = "user"
    ASSISTANT = "assistant"


class FinishReason(StrEnum):
    """Why a model stopped."""

    STOP = "stop"
    """It was done, or met a stop sequence."""

    LENGTH = "length"
    """It met the limit of output tokens."""

    CONTEXT_EXCEEDED = "context_exceeded"
    """It filled its context window."""

    TOOL_CALL = "tool_call"
    """It waits for the results of tools."""

    REFUSAL = "refusal"
    """The model declined to answer."""

    CONTENT_FILTER = "content_filter"
    """The vendor's filter cut the answer."""

    PAUSED = "paused"
    """The vendor interrupted a long turn that may be continued."""

    ERROR = "error"
    """The vendor failed after it had begun to answer."""

    UNKNOWN = "unknown"
    """The vendor gave no reason, or one that is not in its table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """Text of a message."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePart:
    """An image of a message, whose type and size were read from its own header."""

    media_type: str
    data: bytes
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePart:
    """Something that only the vendor understands, replayed to the same provider and model only."""

    provider: str
    model: str
    provider_state: bytes


MessagePart: TypeAlias = TextPart | ImagePart | StatePart


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation."""

    role: Role
    parts: tuple[MessagePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSchema:
    """The JSON schema that an answer must satisfy, in the subset that all vendors support."""

    name: str
    schema: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceCeiling:
    """The dearest price at which a vendor that chooses among upstreams may run the call."""

    input_nano_usd_per_mtok: int
    output_nano_usd_per_mtok: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """What is asked of a chat model, before any vendor's form.

    Attributes:
        messages: The conversation, oldest first; never empty.
        output_tokens_max: The most that the model may produce, thinking included.
        system: Instructions that stand above the conversation.
        schema: Set when the answer must be JSON.
        effort: Unset leaves the model's own default.
        temperature: Dropped for models that do not accept it.
        stream: Whether the answer comes in events.
        price_ceiling: Sent to vendors that choose the upstream themselves; the price that was reserved.
    """

    messages: tuple[Message, ...]
    output_tokens_max: int
    system: str = ""
    schema: OutputSchema | None = None
    effort: Effort | None = None
    temperature: float | None = None
    stream: bool = False
    price_ceiling: PriceCeiling | None = None

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """Return the images of all messages."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, ImagePart))


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool that the model asks for, or that the vendor has run itself.

    Attributes:
        call_id: The vendor's id, empty where there is none.
        name: The tool.
        arguments: JSON text as the model wrote it; not checked.
        is_vendor_run: Whether the vendor ran it and billed what it read.
    """

    call_id: str
    name: str
    arguments: str
    is_vendor_run: bool = False


class PartKind(StrEnum):
    """What a part of an answer holds."""

    TEXT = "text"
    REASONING = "reasoning"
    REFUSAL = "refusal"
    TOOL_CALL = "tool_call"
    OTHER = "other"
    """Something with no normalized form (a tool's result, audio): kept only as provider state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionPart:
    """One part of an answer, in the vendor's order."""

    kind: PartKind
    text: str = ""
    tool_call: ToolCall | None = None
    provider_state: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A chat model's answer, normalized.

    Attributes:
        text: All text parts of the first candidate, joined.
        parts: The first candidate's parts in the vendor's order.
        finish_reason: Why the first candidate ended.
        usage: What the call consumed, all candidates together.
        model: The model that answered, as the vendor names it; it may differ from the one asked.
        tool_calls: Tools that the model wants run, or that the vendor ran.
        reasoning: Visible reasoning, joined; empty where the vendor hides it.
        refusal: The model's words of refusal; ``None`` when it did not refuse.
        vendor_finish_reason: The vendor's own word, at most 64 characters.
        response_id: The vendor's id of the answer, for its support; empty where there is none.
        tier: The service tier that the vendor says it used.
        region: Where the vendor says that it ran, in the vendor's word.
        upstream: The vendor behind the vendor, where one is named (OpenRouter).
        provider_cost_nano_usd: What the vendor says that the call cost, ``None`` where it says nothing.
        other_texts: The texts of further candidates, where several were asked for.
    """

    text: str
    parts: tuple[CompletionPart, ...]
    finish_reason: FinishReason
    usage: Usage
    model: str
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    refusal: str | None = None
    vendor_finish_reason: str = ""
    response_id: str = ""
    tier: str | None = None
    region: str | None = None
    upstream: str | None = None
    provider_cost_nano_usd: int | None = None
    other_texts: tuple[str, ...] = ()

    @property
    def is_refused(self) -> bool:
        """Whether the model or the vendor's filter declined; such an answer is never repaired."""
        return self.refusal is not None or self.finish_reason in {FinishReason.REFUSAL, FinishReason.CONTENT_FILTER}


class DeltaKind(StrEnum):
    """What a piece of a streamed answer carries."""

    TEXT = "text"
    REASONING = "reasoning"
    REFUSAL = "refusal"
    TOOL_START = "tool_start"
    """``text`` is the tool's name, ``call_id`` its id."""

    TOOL_ARGUMENTS = "tool_arguments"
    PROVIDER_STATE = "provider_state"
    """``provider_state`` is to be kept and replayed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a streamed answer."""

    kind: DeltaKind
    part_index: int
    text: str = ""
    call_id: str = ""
    provider_state: bytes = b""

"""What goes back over the wire, whatever dialect renders it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

JSON = "application/json"
SSE = "text/event-stream; charset=utf-8"
NDJSON = "application/x-ndjson"


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer in the vendor's form: one chunk for a plain answer, one per event for a stream."""

    status: int
    content_type: str
    chunks: Sequence[bytes]
    input_tokens: int = 0
    output_tokens: int = 0
    is_streaming: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """Return the whole body."""
        return b"".join(self.chunks)


@dataclass(frozen=True, kw_only=True)
class Making:
    """What a reply is made of besides the request."""

    call_id: int
    now: int
    is_off_schema: bool = False
    is_refusal: bool = False
    is_cut_short: bool = False
    has_usage: bool = True
    is_empty: bool = False


def call_text_id(call_id: int, length: int = 24) -> str:
    """Return an id that looks like a vendor's and differs for every call."""
    return f"SIM{call_id:0{length - 3}d}"

"""The answers of operations, and the form in which they are kept for a replay.

Embeddings are never kept: they are large, and a caller that lost them knows the texts. A kept answer is encrypted by
whoever stores it; here it is only bytes.
"""

import zlib
from dataclasses import dataclass
from typing import Final

import msgspec

from catalogue.models import EmbeddingSpace, Operation
from router.domain.embeddings import Vector
from router.domain.guardrails import Judgement
from router.domain.receipts import Receipt
from router.domain.refusals import AnswerNotKeptError

_COMPRESSED: Final = b"\x01"
_PLAIN: Final = b"\x00"
_COMPRESS_ABOVE_BYTES: Final = 2_048
_KEPT_BYTES_MAX: Final = 1_048_576


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardrailAnswer:
    """A usable judgement of content."""

    judgement: Judgement
    prompt_version: str
    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingAnswer:
    """Vectors of one space, in the order of the texts."""

    vectors: tuple[Vector, ...]
    space: EmbeddingSpace
    receipt: Receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Whether a key covers an operation, with the model that would serve it or what is missing."""

    operation: Operation
    is_covered: bool
    model: str = ""
    missing: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationAnswer:
    """What the test call of a key found.

    Attributes:
        verdict: A word of ``ports.KeyVerdict``.
        key: The key after the change of its state, as KeyVault sent it.
        receipt: ``None`` when no probe had to be paid for.
    """

    verdict: str
    explanation: str
    models: tuple[str, ...]
    coverage: tuple[Coverage, ...]
    key: bytes
    receipt: Receipt | None = None


class KeptGuardrail(msgspec.Struct, frozen=True, tag="guardrail"):
    """A guardrail's answer as kept."""

    answer: GuardrailAnswer


class KeptValidation(msgspec.Struct, frozen=True, tag="validation"):
    """A validation's answer as kept."""

    answer: ValidationAnswer


class KeptRefusal(msgspec.Struct, frozen=True, tag="refusal"):
    """That the content was refused, which is final and was billed."""

    provider: str


Kept = KeptGuardrail | KeptValidation | KeptRefusal

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final[msgspec.msgpack.Decoder[Kept]] = msgspec.msgpack.Decoder(Kept)


def encode_kept(kept: Kept) -> bytes:
    """Return the bytes to keep."""
    encoded = _ENCODER.encode(kept)
    if len(encoded) <= _COMPRESS_ABOVE_BYTES:
        return _PLAIN + encoded
    return _COMPRESSED + zlib.compress(encoded, 1)


def decode_kept(kept: bytes) -> Kept:
    """Return what was kept.

    Raises:
        AnswerNotKeptError: It was written by a release whose answers this one cannot read.
    """
    try:
        if kept[:1] == _COMPRESSED:
            return _DECODER.decode(zlib.decompressobj().decompress(kept[1:], _KEPT_BYTES_MAX))
        return _DECODER.decode(memoryview(kept)[1:])
    except (msgspec.DecodeError, zlib.error):
        raise AnswerNotKeptError from None

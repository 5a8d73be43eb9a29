"""Kept answers: what is encoded comes back, and opens only for the request that bought it."""

from dataclasses import replace
from datetime import timedelta

import pytest

from router.adapters.answer_cipher import SEALED_BYTES_MAX, AnswerCipher
from router.domain.answers import KeptGuardrail, KeptRefusal, decode_kept, encode_kept
from router.domain.refusals import AnswerNotKeptError
from services.router.tests.kit import Workbench, completion, verdict

KEY = bytes(range(32))
IDENTITY = {"request_id": "019a-request", "agent_id": "agent-1"}


async def test_an_answer_comes_back_as_it_was_kept() -> None:
    """Every field of judgement and receipt survives."""
    bench = Workbench()
    bench.keys.leases = [bench.lease()]
    bench.provider.script = [completion(verdict("block", findings=[{"rule_id": "a", "reason": "é", "score": 0.5}]))]
    answer = await bench.evaluate_guardrail(bench.guardrail(), deadline=bench.deadline)
    answer = replace(answer, receipt=replace(answer.receipt, latency=timedelta(milliseconds=12)))
    kept = KeptGuardrail(answer=answer)
    assert decode_kept(encode_kept(kept)) == kept


def test_a_large_answer_is_compressed() -> None:
    """Repetitive text takes little room."""
    kept = KeptRefusal(provider="p" * 100_000)
    encoded = encode_kept(kept)
    assert len(encoded) < 2_000
    assert decode_kept(encoded) == kept


@pytest.mark.parametrize("garbage", [b"", b"\x00", b"\x00\xc1", b"\x01not zlib", b"\x02??", b"\x00\x81\xa4type\xa3new"])
def test_what_another_release_wrote_is_not_kept(garbage: bytes) -> None:
    """Bytes that this release cannot read are an answer that is not kept, never a crash."""
    with pytest.raises(AnswerNotKeptError):
        decode_kept(garbage)


def test_a_sealed_answer_opens_for_its_own_request_only() -> None:
    """Request id and agent id are bound into the seal."""
    cipher = AnswerCipher(KEY)
    sealed = cipher.seal(b"answer", **IDENTITY)
    assert cipher.open(sealed, **IDENTITY) == b"answer"
    assert b"answer" not in sealed
    for other in (
        IDENTITY | {"request_id": "019a-other"},
        IDENTITY | {"agent_id": "agent-2"},
        {"request_id": "019a-requestagent", "agent_id": "-1"},
    ):
        with pytest.raises(AnswerNotKeptError):
            cipher.open(sealed, **other)


def test_every_flipped_bit_is_noticed() -> None:
    """Version, key id, nonce, text and tag are all authenticated or compared."""
    cipher = AnswerCipher(KEY)
    sealed = cipher.seal(b"answer", **IDENTITY)
    for place in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[place] ^= 1
        with pytest.raises(AnswerNotKeptError):
            cipher.open(bytes(flipped), **IDENTITY)
    with pytest.raises(AnswerNotKeptError):
        cipher.open(b"", **IDENTITY)


def test_another_key_does_not_open() -> None:
    """After the operator has replaced the key, old answers are not kept."""
    sealed = AnswerCipher(KEY).seal(b"answer", **IDENTITY)
    with pytest.raises(AnswerNotKeptError):
        AnswerCipher(bytes(32)).open(sealed, **IDENTITY)


def test_an_answer_that_is_too_large_is_not_kept() -> None:
    """What would not fit beside a settlement is left out, which the caller can tell from the empty seal."""
    cipher = AnswerCipher(KEY)
    assert cipher.seal(bytes(SEALED_BYTES_MAX), **IDENTITY) == b""
    assert len(cipher.seal(bytes(SEALED_BYTES_MAX - 33), **IDENTITY)) == SEALED_BYTES_MAX


def test_a_key_of_another_length_is_refused() -> None:
    """AES-256 or nothing."""
    with pytest.raises(ValueError, match="32 bytes"):
        AnswerCipher(b"short")

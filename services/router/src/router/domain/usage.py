"""Token counts of provider calls, in one meaning for all vendors.

Totals include their parts: ``input_tokens`` counts cached, cache-writing, audio and tool-use input; ``output_tokens``
counts reasoning and audio output. Vendors report parts above their totals now and then, so parts are clamped and the
usage is flagged; it is never refused, because the call has been paid for.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final


class UsageFlag(StrEnum):
    """Something about a usage that a reader of the ledger must know."""

    CLAMPED = "clamped"
    """A part exceeded its total, or a count was negative, and was cut."""

    MISSING = "missing"
    """The vendor reported no usage; the counts are zero and must not be settled as the truth."""

    PARTIAL = "partial"
    """The stream ended before the final count; the counts are the last cumulative ones seen."""

    ESTIMATED = "estimated"
    """The counts were worked out from what was received, not reported."""

    UNITEMIZED = "unitemized"
    """Some of the work is reported without a model or without its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens of one kind of counting; totals are inclusive of their parts."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    input_audio_tokens: int = 0
    tool_use_tokens: int = 0
    reasoning_tokens: int = 0
    output_audio_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Return input plus output."""
        return self.input_tokens + self.output_tokens

    def plus(self, other: TokenCounts) -> TokenCounts:
        """Return the sum, part by part."""
        return TokenCounts(**{name: getattr(self, name) + getattr(other, name) for name in _NAMES})

    def clamped(self) -> tuple[TokenCounts, bool]:
        """Return the counts with every part cut to what its total leaves, and whether anything was cut."""
        if self._is_sound():
            return self, False
        values = {name: max(0, getattr(self, name)) for name in _NAMES}
        # Cache reads and writes are disjoint, so they share the input; audio and tool use may overlap with them.
        left = values["input_tokens"]
        for name in ("cache_read_tokens", "cache_write_5m_tokens", "cache_write_1h_tokens"):
            values[name] = min(values[name], left)
            left -= values[name]
        for name in ("input_audio_tokens", "tool_use_tokens"):
            values[name] = min(values[name], values["input_tokens"])
        left = values["output_tokens"]
        for name in ("reasoning_tokens", "output_audio_tokens"):
            values[name] = min(values[name], left)
            left -= values[name]
        cut = TokenCounts(**values)
        return cut, cut != self

    def _is_sound(self) -> bool:
        """Say whether nothing needs cutting; nearly always so, and this is on the hot path."""
        cached = self.cache_read_tokens + self.cache_write_5m_tokens + self.cache_write_1h_tokens
        least = min(
            self.cache_read_tokens,
            self.cache_write_5m_tokens,
            self.cache_write_1h_tokens,
            self.input_audio_tokens,
            self.tool_use_tokens,
            self.reasoning_tokens,
            self.output_audio_tokens,
        )
        inputs = max(cached, self.input_audio_tokens, self.tool_use_tokens)
        return (
            least >= 0
            and inputs <= self.input_tokens
            and self.reasoning_tokens + self.output_audio_tokens <= self.output_tokens
        )


_BYTES_A_TOKEN: Final = 4
_NAMES = tuple(field.name for field in fields(TokenCounts))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUsage:
    """What one model did in a call; a call may involve several (advisors, compaction, fallbacks)."""

    model: str
    counts: TokenCounts


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a call consumed.

    Attributes:
        processed: Tokens that the vendor says it handled, of all models.
        billable: Tokens that the vendor bills; equal to ``processed`` where it does not distinguish.
        parts: The billable counts by model, in the order reported. Their sum is ``billable``.
        web_searches: Searches that the vendor ran and bills by the piece.
        flags: What a reader must know about the counts.
    """

    processed: TokenCounts
    billable: TokenCounts
    parts: tuple[ModelUsage, ...]
    web_searches: int = 0
    flags: frozenset[UsageFlag] = frozenset()

    @property
    def is_missing(self) -> bool:
        """Say whether the vendor reported nothing."""
        return UsageFlag.MISSING in self.flags

    def flagged(self, flag: UsageFlag) -> Usage:
        """Return the usage with one more flag."""
        return Usage(
            processed=self.processed,
            billable=self.billable,
            parts=self.parts,
            web_searches=self.web_searches,
            flags=self.flags | {flag},
        )


def usage_of(model: str, counts: TokenCounts, *, web_searches: int = 0) -> Usage:
    """Return the usage of a call done by one model, clamped and flagged."""
    cut, was_cut = counts.clamped()
    return Usage(
        processed=cut,
        billable=cut,
        parts=(ModelUsage(model=model, counts=cut),),
        web_searches=web_searches,
        flags=frozenset({UsageFlag.CLAMPED}) if was_cut else frozenset(),
    )


def missing_usage(model: str) -> Usage:
    """Return the usage of a call whose vendor reported none."""
    none = TokenCounts()
    return Usage(
        processed=none,
        billable=none,
        parts=(ModelUsage(model=model, counts=none),),
        flags=frozenset({UsageFlag.MISSING}),
    )


def estimated_usage(model: str, *, request_bytes: int, received_bytes: int) -> Usage:
    """Return a usage worked out from bytes, for a stream that ended without its final count.

    Four bytes a token is the usual density of English; the flag says that it is no more than that.
    """
    counts = TokenCounts(
        input_tokens=-(-request_bytes // _BYTES_A_TOKEN), output_tokens=-(-received_bytes // _BYTES_A_TOKEN)
    )
    return usage_of(model, counts).flagged(UsageFlag.ESTIMATED)

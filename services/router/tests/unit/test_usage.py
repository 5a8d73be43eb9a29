"""Token counts in one meaning: totals include their parts, and nothing is ever below zero."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from router.domain.usage import TokenCounts, UsageFlag, estimated_usage, missing_usage, usage_of

COUNT = st.integers(min_value=-10, max_value=1_000)
COUNTS = st.builds(TokenCounts, **{field.name: COUNT for field in fields(TokenCounts)})


@given(COUNTS)
def test_clamped_counts_hold_their_rules(counts: TokenCounts) -> None:
    """Disjoint parts fit into their total, overlapping ones each, and clamping again changes nothing."""
    cut, was_cut = counts.clamped()
    written = cut.cache_write_5m_tokens + cut.cache_write_1h_tokens
    assert cut.cache_read_tokens + written <= cut.input_tokens
    assert cut.reasoning_tokens + cut.output_audio_tokens <= cut.output_tokens
    assert max(cut.input_audio_tokens, cut.tool_use_tokens) <= cut.input_tokens
    assert all(getattr(cut, field.name) >= 0 for field in fields(cut))
    assert was_cut is (cut != counts)
    assert cut.clamped() == (cut, False)


@given(COUNTS)
def test_clamping_is_told(counts: TokenCounts) -> None:
    """A usage that was cut says so, and only then."""
    usage = usage_of("m", counts)
    assert (UsageFlag.CLAMPED in usage.flags) is (usage.billable != counts)


@given(COUNTS, COUNTS)
def test_sums_are_part_by_part(one: TokenCounts, other: TokenCounts) -> None:
    """Addition loses nothing."""
    both = one.plus(other)
    assert both.total_tokens == one.total_tokens + other.total_tokens
    assert both == other.plus(one)


def test_missing_and_estimated_usage_say_what_they_are() -> None:
    """Neither can be taken for a reported one."""
    assert missing_usage("m").is_missing
    guess = estimated_usage("m", request_bytes=9, received_bytes=8)
    assert (guess.billable.input_tokens, guess.billable.output_tokens) == (3, 2)
    assert guess.flags == {UsageFlag.ESTIMATED}

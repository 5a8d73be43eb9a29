"""Reads usage and cost as OpenAI and the vendors of its dialect report them.

Prompt and completion tokens include their parts; xAI alone counts reasoning beside the completion, and shows it in the
total. OpenRouter adds what the call cost; its cost
is what it charged, and where the call ran on an upstream key of its own user, the upstream's price comes on top.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Final

from router.domain.usage import ModelUsage, TokenCounts, Usage, UsageFlag, missing_usage, usage_of
from router.providers.json_reading import Json, count_of, number_of, object_of, objects_of, optional_count_of, text_of

_NANO: Final = 1_000_000_000
_TOTALS: Final = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens", "total_tokens")
_COST_MAX_USD: Final = 1_000_000


def usage_in(body: Json) -> Json:
    """Return the usage object of a body or of an event, wherever the vendor puts it; empty where there is none."""
    usage = object_of(body, "usage")
    if usage:
        return usage
    usage = object_of(object_of(body, "x_groq"), "usage")
    if usage:
        return usage
    choices = objects_of(body, "choices")
    return object_of(choices[0], "usage") if choices else {}


def usage_from(usage: Json, model: str, breakdown: Json | None = None) -> Usage:
    """Return the normalized usage; Groq's breakdown names the models of a compound call."""
    if not _is_reported(usage):
        return missing_usage(model)
    whole = usage_of(model, _counts(usage), web_searches=_web_searches(usage))
    parts = [
        ModelUsage(model=text_of(row, "model") or model, counts=_counts(object_of(row, "usage")).clamped()[0])
        for row in objects_of(breakdown or {}, "models")
    ]
    if not parts:
        return whole
    total = TokenCounts()
    for part in parts:
        total = total.plus(part.counts)
    # The breakdown is what is billed only if it explains the whole.
    explains = (total.input_tokens, total.output_tokens) == (whole.billable.input_tokens, whole.billable.output_tokens)
    if not explains:
        return whole.flagged(UsageFlag.UNITEMIZED)
    return Usage(
        processed=whole.processed,
        billable=whole.billable,
        parts=tuple(parts),
        web_searches=whole.web_searches,
        flags=whole.flags,
    )


def cost_nano_usd(usage: Json) -> int | None:
    """Return what the vendor says that the call cost; ``None`` where it says nothing."""
    own = number_of(usage, "cost")
    if own is None or not 0 <= own <= _COST_MAX_USD:
        return None
    upstream = number_of(object_of(usage, "cost_details"), "upstream_inference_cost")
    total = Decimal(str(own))
    if usage.get("is_byok") is True:
        # Without the upstream's price the greater half of the cost is unknown, so the whole is.
        if upstream is None or not 0 <= upstream <= _COST_MAX_USD:
            return None
        total += Decimal(str(upstream))
    return int((total * _NANO).to_integral_value(rounding="ROUND_CEILING"))


def _is_reported(usage: Json) -> bool:
    return any(optional_count_of(usage, name) is not None for name in _TOTALS)


def _counts(usage: Json) -> TokenCounts:
    read = object_of(usage, "prompt_tokens_details") or object_of(usage, "input_tokens_details")
    written = object_of(usage, "completion_tokens_details") or object_of(usage, "output_tokens_details")
    inputs = count_of(usage, "prompt_tokens") or count_of(usage, "input_tokens")
    outputs = count_of(usage, "completion_tokens") or count_of(usage, "output_tokens")
    total = count_of(usage, "total_tokens")
    reasoning = count_of(written, "reasoning_tokens")
    if not outputs and not inputs:
        inputs = total
    elif reasoning and total == inputs + outputs + reasoning:
        outputs += reasoning
    return TokenCounts(
        input_tokens=inputs,
        output_tokens=outputs,
        cache_read_tokens=_cache_read(usage, read),
        cache_write_5m_tokens=count_of(read, "cache_write_tokens") or count_of(read, "cache_creation_tokens"),
        input_audio_tokens=count_of(read, "audio_tokens"),
        reasoning_tokens=reasoning,
        output_audio_tokens=count_of(written, "audio_tokens"),
    )


def _cache_read(usage: Json, details: Json) -> int:
    """Return the tokens read from a cache: OpenAI's place for them, DeepSeek's, or Together's."""
    return (
        count_of(details, "cached_tokens")
        or count_of(usage, "prompt_cache_hit_tokens")
        or count_of(usage, "cached_tokens")
    )


def _web_searches(usage: Json) -> int:
    return count_of(object_of(usage, "server_tool_use_details"), "web_search_requests") or count_of(
        object_of(usage, "server_tool_use"), "web_search_requests"
    )

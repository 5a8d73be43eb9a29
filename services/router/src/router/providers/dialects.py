"""The vendors that speak OpenAI's dialect, as rows of data with their quirks.

A new vendor is a new row here and in the catalogue; code is written only for a quirk that no row has had yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from router.providers import failure_tables
from router.providers.failures import FailureTable


class EffortField(StrEnum):
    """Where a vendor takes the reasoning effort."""

    REASONING_EFFORT = "reasoning_effort"
    """A field of its own, as OpenAI has it."""

    REASONING = "reasoning"
    """``{"reasoning": {"effort": …}}``, as OpenRouter has it."""

    THINKING = "thinking"
    """``{"thinking": {"type": "enabled" | "disabled"}}``, as DeepSeek has it: it can only be switched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """One vendor's quirks.

    Attributes:
        failures: Its table of errors.
        stores: Whether it keeps answers unless told ``store: false``.
        tier: The service tier to name when none is mapped; ``None`` where the vendor knows none.
        effort: Where it takes the reasoning effort.
        strict_schema: Whether it knows ``strict`` beside a schema.
        routes_upstreams: Whether it chooses among upstreams, so that parameters and the price must be pinned.
        reports_cost: Whether its word on what a call cost is what it charges.
        base64_vectors: Whether it can answer vectors as base64, which is a third of the bytes.
        takes_embedding_dimensions: Whether its embedding endpoint knows ``dimensions``.
    """

    failures: FailureTable
    stores: bool = False
    tier: str | None = None
    effort: EffortField = EffortField.REASONING_EFFORT
    strict_schema: bool = True
    routes_upstreams: bool = False
    reports_cost: bool = False
    base64_vectors: bool = False
    takes_embedding_dimensions: bool = True


VENDORS: Final = {
    "openai": Vendor(failures=failure_tables.OPENAI, stores=True, tier="default", base64_vectors=True),
    "groq": Vendor(failures=failure_tables.GROQ, tier="on_demand"),
    "together": Vendor(failures=failure_tables.TOGETHER, strict_schema=False, takes_embedding_dimensions=False),
    "fireworks": Vendor(failures=failure_tables.FIREWORKS, strict_schema=False),
    "cerebras": Vendor(failures=failure_tables.CEREBRAS),
    "deepseek": Vendor(failures=failure_tables.DEEPSEEK, effort=EffortField.THINKING),
    "openrouter": Vendor(
        failures=failure_tables.OPENROUTER, effort=EffortField.REASONING, routes_upstreams=True, reports_cost=True
    ),
    "vllm": Vendor(failures=failure_tables.VLLM),
    "ollama": Vendor(failures=failure_tables.OLLAMA_AS_OPENAI),
    "openai_compatible": Vendor(failures=failure_tables.COMPATIBLE),
}


def vendor(provider: str) -> Vendor:
    """Return a provider's quirks; one without a row is a compatible host without any."""
    return VENDORS.get(provider) or VENDORS["openai_compatible"]

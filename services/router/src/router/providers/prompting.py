"""Asks for JSON in words, for models that no vendor mode holds to a schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

from catalogue.models import StructuredOutput
from router.providers.json_reading import write

if TYPE_CHECKING:
    from router.domain.completions import ChatCall
    from router.domain.routes import Route


def instructions(call: ChatCall, route: Route) -> str:
    """Return the system text, with the schema in words where the model has no mode for it."""
    if call.schema is None or route.model.structured_output is StructuredOutput.JSON_SCHEMA:
        return call.system
    schema = write(call.schema.schema).decode()
    ask = (
        "Answer with one JSON object and nothing else: no prose around it, no code fence. "
        f"It must satisfy this JSON schema:\n{schema}"
    )
    return f"{call.system}\n\n{ask}" if call.system else ask

"""The catalogue says what a key can do; a known vendor's host says whose models it has."""

import pytest

from catalogue.book import load_catalogue
from keyvault.adapters.catalogue_capabilities import CatalogueCapabilities
from keyvault.domain.provider_keys import Operation, OperationRoute
from services.keyvault.tests.unit.builders import provider_key

GROQ = "https://api.groq.com/openai/v1"
ELSEWHERE = "https://llm.example.org/v1"
GUARDRAIL = OperationRoute(operation=Operation.GUARDRAIL_EVALUATION, model="llama-3.3-70b-versatile")


@pytest.fixture(name="capabilities")
def _capabilities() -> CatalogueCapabilities:
    return CatalogueCapabilities(load_catalogue())


def test_a_known_vendors_model_needs_no_declaration_at_that_vendors_host(capabilities: CatalogueCapabilities) -> None:
    """The spec's own example: Groq as an OpenAI-compatible endpoint."""
    assert capabilities.why_unable("openai_compatible", GROQ, GUARDRAIL) == ""
    assert "Declare" in capabilities.why_unable("openai_compatible", ELSEWHERE, GUARDRAIL)


@pytest.mark.parametrize(("base_url", "can"), [(GROQ, True), (ELSEWHERE, False)])
def test_a_key_serves_what_its_host_is_known_for(
    capabilities: CatalogueCapabilities, base_url: str, *, can: bool
) -> None:
    """Selection at the lease agrees with what was accepted when the mapping was saved."""
    key = provider_key(provider="openai_compatible", base_url=base_url, mapping=(GUARDRAIL,))
    assert capabilities.can_serve(key, Operation.GUARDRAIL_EVALUATION, None) is can

"""A key's mapping and its host decide the model, and what is known of it."""

from datetime import timedelta

import pytest

from catalogue.book import load_catalogue
from catalogue.models import Operation
from router.domain.leases import Account, AccountKind, Lease, MappedModel
from router.domain.refusals import ModelNotCapableError
from router.domain.selection import RouteSelection
from servicekit.secrets import Secret

GROQ = "https://api.groq.com/openai/v1"
LLAMA = "llama-3.3-70b-versatile"


def lease(*, base_url: str, mapping: dict[Operation, MappedModel]) -> Lease:
    """Return a lease of an `openai_compatible` key."""
    owner = Account(kind=AccountKind.OWNER, id="owner-1")
    return Lease(
        lease_id="lease",
        key_id="key",
        key_version=1,
        provider="openai_compatible",
        base_url=base_url,
        secret=Secret(b"gsk_x"),
        account=owner,
        owner_id="owner-1",
        agent_id="agent-1",
        owned_by=owner,
        mapping=mapping,
        authority_index=1,
        binding_index=1,
        request_time=0.0,
        life=timedelta(seconds=60),
    )


@pytest.fixture(name="routes")
def _routes() -> RouteSelection:
    return RouteSelection(load_catalogue())


def test_a_known_vendors_host_given_as_compatible_has_that_vendors_models(routes: RouteSelection) -> None:
    """The spec's own example: Groq's host and model, nothing declared."""
    mapping = {Operation.GUARDRAIL_EVALUATION: MappedModel(model=LLAMA)}
    route = routes.find(lease(base_url=GROQ, mapping=mapping), Operation.GUARDRAIL_EVALUATION)
    assert (route.provider, route.vendor) == ("openai_compatible", "groq")
    assert route.model.is_reviewed


def test_the_same_model_at_an_unknown_host_must_be_declared(routes: RouteSelection) -> None:
    """A name says nothing of what a server of one's own really runs."""
    mapping = {Operation.GUARDRAIL_EVALUATION: MappedModel(model=LLAMA)}
    with pytest.raises(ModelNotCapableError):
        routes.find(lease(base_url="https://llm.example.org/v1", mapping=mapping), Operation.GUARDRAIL_EVALUATION)

"""What GenerateEmbeddings promises of spaces, batches and money."""

import asyncio
import json
from datetime import timedelta

import pytest

from catalogue.models import EmbeddingSpace, Operation
from router.domain.leases import MappedModel, PlatformCause
from router.domain.receipts import Settlement
from router.domain.refusals import (
    AnswerNotKeptError,
    EmbeddingSpaceUnavailableError,
    ProviderRequestRefusedError,
    ProvidersExhaustedError,
)
from router.domain.wire import WireRequest, WireResponse
from servicekit.errors import InvalidArgumentError
from services.router.tests.kit import Workbench, failure, reply, vectors

SMALL = EmbeddingSpace(maker="openai", model="text-embedding-3-small", dimensions=1024)


@pytest.fixture
def bench() -> Workbench:
    """Return a Router whose owner has one key that works."""
    made = Workbench()
    made.keys.leases = [made.lease()]
    made.provider.script = [vectors]
    return made


async def test_vectors_have_1024_dimensions_and_name_their_space(bench: Workbench) -> None:
    """Without a space, the first candidate's is taken at the default size."""
    answer = await bench.generate_embeddings(bench.embedding("a", "b"), deadline=bench.deadline)
    assert answer.space == SMALL
    assert [len(vector) for vector in answer.vectors] == [1024, 1024]
    assert answer.receipt.settlement is Settlement.SETTLED
    assert bench.provider.bodies()[0]["dimensions"] == 1024


async def test_a_required_space_goes_into_the_lease_and_the_request(bench: Workbench) -> None:
    """KeyVault is asked for a key that serves the space, and the provider for its size."""
    space = EmbeddingSpace(maker="openai", model="text-embedding-3-small", dimensions=1024)
    answer = await bench.generate_embeddings(bench.embedding("a", space=space), deadline=bench.deadline)
    assert answer.space == space
    assert bench.keys.queries[0].required_space == space


async def test_a_space_that_no_key_serves_is_a_typed_error(bench: Workbench) -> None:
    """The mapped model's space is not the one asked for."""
    space = EmbeddingSpace(maker="voyage", model="voyage-3", dimensions=1024)
    with pytest.raises(EmbeddingSpaceUnavailableError):
        await bench.generate_embeddings(bench.embedding("a", space=space), deadline=bench.deadline)
    bench.keys.leases = []
    bench.keys.missing = bench.no_key(PlatformCause.NO_KEY_FOR_OPERATION)
    with pytest.raises(EmbeddingSpaceUnavailableError):
        await bench.generate_embeddings(bench.embedding("a", space=space), deadline=bench.deadline)


async def test_the_space_of_the_first_candidate_holds_for_a_fallback(bench: Workbench) -> None:
    """A second key must serve the same space, also when the first one never answered."""
    bench.keys.leases = [bench.lease("key-1"), bench.lease("key-2")]
    bench.provider.script = [failure(401, "invalid_api_key"), vectors]
    answer = await bench.generate_embeddings(bench.embedding("a"), deadline=bench.deadline)
    assert answer.receipt.key_id == "key-2"
    assert bench.keys.queries[1].required_space == SMALL


async def test_many_texts_are_split_to_the_vendors_limits(bench: Workbench) -> None:
    """Each batch is a call with a hold of its own; only the last one closes the operation; the order is kept."""
    texts = tuple(f"{index} " + "x" * 90_000 for index in range(8))
    answer = await bench.generate_embeddings(bench.embedding(*texts), deadline=bench.deadline)
    sent = [text for body in bench.provider.bodies() for text in body["input"]]
    assert sent == list(texts)
    assert len(bench.provider.requests) > 1
    assert len(answer.vectors) == len(texts)
    finals = [charge.is_final for charge in bench.admission.charges]
    assert finals == [False] * (len(finals) - 1) + [True]


async def test_a_partial_batch_settles_what_succeeded_and_fails_the_call(bench: Workbench) -> None:
    """The first batch is paid for, the second released, and no vector is given."""
    texts = tuple("x" * 99_000 for _ in range(6))
    bench.provider.script = [vectors, failure(400, "invalid_value")]
    with pytest.raises(ProviderRequestRefusedError) as failed:
        await bench.generate_embeddings(bench.embedding(*texts), deadline=bench.deadline)
    assert [charge.is_final for charge in bench.admission.charges] == [False]
    assert len(bench.admission.releases) == 1
    assert failed.value.report is not None
    assert failed.value.report.usage is not None


async def test_a_replay_of_embeddings_is_not_kept(bench: Workbench) -> None:
    """Vectors are never stored; a repetition is told so and pays nothing."""
    request = bench.embedding("a")
    await bench.generate_embeddings(request, deadline=bench.deadline)
    with pytest.raises(AnswerNotKeptError) as refused:
        await bench.generate_embeddings(request, deadline=bench.deadline)
    assert refused.value.report is not None
    assert refused.value.report.usage is not None
    assert len(bench.provider.requests) == 1


async def test_vectors_of_another_size_fail_the_call(bench: Workbench) -> None:
    """A host that ignores the size asked for is never mixed in."""
    bench.provider.script = [
        reply({"data": [{"index": 0, "embedding": [1.0, 0.0]}], "model": "text-embedding-3-small", "usage": {}})
    ]
    call = asyncio.create_task(bench.generate_embeddings(bench.embedding("a"), deadline=bench.deadline))
    await bench.clock.advance(timedelta(seconds=5))
    with pytest.raises(ProvidersExhaustedError):
        await call


async def test_vectors_are_normalized(bench: Workbench) -> None:
    """A vector of another length is scaled to one."""

    def scaled(_request: WireRequest) -> WireResponse:
        return reply(
            {
                "data": [{"index": 0, "embedding": [3.0, 4.0] + [0.0] * 1022}],
                "model": "m",
                "usage": {"prompt_tokens": 1},
            }
        )

    bench.provider.script = [scaled]
    answer = await bench.generate_embeddings(bench.embedding("a"), deadline=bench.deadline)
    assert [round(value, 6) for value in answer.vectors[0][:2]] == [0.6, 0.8]


async def test_a_mapped_model_is_the_one_asked(bench: Workbench) -> None:
    """The key's mapping comes before the catalogue's default."""
    mapping = {Operation.EMBEDDING_GENERATION: MappedModel(model="text-embedding-3-large")}
    bench.keys.leases = [bench.lease(mapping=mapping)]
    answer = await bench.generate_embeddings(bench.embedding("a"), deadline=bench.deadline)
    assert json.loads(bench.provider.requests[0].body)["model"] == "text-embedding-3-large"
    assert answer.space.name == "openai/text-embedding-3-large@1024"


@pytest.mark.parametrize(
    ("texts", "path"),
    [((), "texts"), (("ok", ""), "texts[1]"), (("a\x07",), "texts[0]"), (("a",) * 2_049, "texts")],
)
async def test_bad_texts_are_named_by_their_place(bench: Workbench, texts: tuple[str, ...], path: str) -> None:
    """The violation names the very text."""
    request = bench.embedding()
    object.__setattr__(request, "texts", texts)
    with pytest.raises(InvalidArgumentError) as refused:
        await bench.generate_embeddings(request, deadline=bench.deadline)
    assert [violation.field for violation in refused.value.violations] == [path]

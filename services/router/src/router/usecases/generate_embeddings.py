"""Turns texts into vectors of one space, in as many provider calls as the vendor's limits ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from catalogue.models import Operation
from router.domain.answers import EmbeddingAnswer
from router.domain.completions import FinishReason
from router.domain.operations import check_embedding
from router.domain.refusals import AnswerNotKeptError
from router.usecases.courses import Course
from router.usecases.questions import EmbedQuestion
from router.usecases.runs import Run

if TYPE_CHECKING:
    from router.domain.answers import Kept
    from router.domain.embeddings import EmbeddingResult, Vector
    from router.domain.operations import EmbeddingRequest
    from router.ports import AnswerSeal
    from router.usecases.activity import Activity
    from router.usecases.paid_calls import Paid
    from router.usecases.provider_calls import ProviderCalls
    from router.usecases.questions import Vendors
    from servicekit.clock import Clock


class GenerateEmbeddings:
    """The use case of GenerateEmbeddings."""

    def __init__(
        self, *, calls: ProviderCalls, vendors: Vendors, seal: AnswerSeal, clock: Clock, activity: Activity
    ) -> None:
        """Ask through `calls`."""
        self._calls = calls
        self._vendors = vendors
        self._clock = clock
        self._course: Course[EmbeddingAnswer] = Course(seal=seal, clock=clock, activity=activity, replay=_replay)

    async def __call__(self, request: EmbeddingRequest, *, deadline: float) -> EmbeddingAnswer:
        """Return a vector for every text.

        Raises:
            InvalidArgumentError: A field is wrong.
            RouterError: At least one text has no vector; what succeeded before is settled and not given.
        """
        check_embedding(request, now=self._clock.now())
        run = Run.begin(
            request.context, operation=Operation.EMBEDDING_GENERATION, deadline=deadline, start=self._clock.monotonic()
        )
        return await self._course.take(run, lambda run: self._embed(run, request))

    async def _embed(self, run: Run, request: EmbeddingRequest) -> EmbeddingAnswer:
        vectors: list[Vector] = []
        question = EmbedQuestion(request.texts, purpose=request.purpose, space=request.space, vendors=self._vendors)
        while True:
            paid = await self._calls.ask(run, question)
            vectors.extend(paid.value.vectors)
            question = question.rest(len(paid.value.vectors))
            is_last = not question.texts
            await self._calls.settle(run, paid, is_final=is_last)
            if is_last:
                return self._conclude(run, paid, question, tuple(vectors))

    def _conclude(
        self, run: Run, paid: Paid[EmbeddingResult], question: EmbedQuestion, vectors: tuple[Vector, ...]
    ) -> EmbeddingAnswer:
        receipt = run.receipt(
            paid.reserve.attribution,
            model=paid.value.model or paid.route.model.model_id,
            now=self._clock.monotonic(),
            finish_reason=FinishReason.STOP,
        )
        return EmbeddingAnswer(
            vectors=vectors, space=question.space_served(), receipt=replace(receipt, settlement=run.settlement)
        )


def _replay(_kept: Kept) -> NoReturn:
    # Vectors are never kept, so that whatever was is none.
    raise AnswerNotKeptError

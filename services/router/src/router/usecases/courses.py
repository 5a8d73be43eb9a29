"""The course that every operation takes: joined if it is under way, replayed if it is closed, else worked on once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from router.domain.answers import decode_kept
from router.domain.receipts import FailureReport, Settlement
from router.domain.refusals import AnswerNotKeptError, RouterError
from router.usecases.joining import InFlightOperations
from router.usecases.paid_calls import AlreadyFinal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from router.domain.answers import Kept
    from router.domain.reservations import FinalOutcome
    from router.ports import AnswerSeal
    from router.usecases.activity import Activity
    from router.usecases.runs import Run
    from servicekit.clock import Clock

Answer = TypeVar("Answer")


class Course(Generic[Answer]):
    """The course of one kind of operation."""

    def __init__(self, *, seal: AnswerSeal, clock: Clock, activity: Activity, replay: Callable[[Kept], Answer]) -> None:
        """Open kept answers with `seal` and turn them into answers again with `replay`."""
        self._seal = seal
        self._clock = clock
        self._replay = replay
        self._in_flight: InFlightOperations[Answer] = InFlightOperations(activity)

    async def take(self, run: Run, work: Callable[[Run], Awaitable[Answer]]) -> Answer:
        """Return the answer of the operation, bought now or before.

        Raises:
            RouterError: The operation failed; its ``report`` says what had happened by then.
        """

        async def once() -> Answer:
            try:
                return await work(run)
            except AlreadyFinal as final:
                return self._answer_again(run, final.outcome)
            except RouterError as error:
                error.report = run.report(error, now=self._clock.now())
                raise

        return await self._in_flight.run((run.request_id, run.agent_id), once, body_hash=run.body_hash)

    def _answer_again(self, run: Run, outcome: FinalOutcome) -> Answer:
        try:
            if not outcome.sealed_answer:
                raise AnswerNotKeptError
            kept = self._seal.open(outcome.sealed_answer, request_id=run.request_id, agent_id=run.agent_id)
            return self._replay(decode_kept(kept))
        except RouterError as error:
            error.report = FailureReport(
                retryable=False, settlement=Settlement.SETTLED, payer=outcome.payer, usage=outcome.usage
            )
            raise

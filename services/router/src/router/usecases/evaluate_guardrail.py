"""Judges content against a policy: one question, at most one repair, and a verdict whose quotes really stand there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from catalogue.models import Operation
from router.domain.answers import GuardrailAnswer, Kept, KeptGuardrail, KeptRefusal, encode_kept
from router.domain.completions import FinishReason
from router.domain.guardrails import UnusableAnswerError, judging_call, read_judgement, repairing_call
from router.domain.operations import check_guardrail
from router.domain.receipts import Settlement
from router.domain.refusals import AnswerMalformedError, AnswerNotKeptError, ContentHeldError
from router.usecases.courses import Course
from router.usecases.questions import ChatQuestion
from router.usecases.runs import Run

if TYPE_CHECKING:
    from collections.abc import Callable

    from catalogue.models import Viability
    from router.domain.completions import ChatCall, Completion
    from router.domain.guardrails import GuardrailPrompts, Judgement
    from router.domain.operations import GuardrailRequest
    from router.ports import AnswerSeal
    from router.usecases.activity import Activity
    from router.usecases.paid_calls import Paid
    from router.usecases.provider_calls import ProviderCalls
    from router.usecases.questions import Vendors
    from servicekit.clock import Clock

# An answer that was cut would be cut again.
_BEYOND_REPAIR: Final = frozenset({FinishReason.LENGTH, FinishReason.CONTEXT_EXCEEDED})


class EvaluateGuardrail:
    """The use case of EvaluateGuardrail."""

    def __init__(
        self,
        *,
        calls: ProviderCalls,
        vendors: Vendors,
        prompts: GuardrailPrompts,
        seal: AnswerSeal,
        clock: Clock,
        activity: Activity,
    ) -> None:
        """Ask through `calls`, in the words of `prompts`."""
        self._calls = calls
        self._vendors = vendors
        self._prompts = prompts
        self._seal = seal
        self._clock = clock
        self._course: Course[GuardrailAnswer] = Course(seal=seal, clock=clock, activity=activity, replay=_replay)

    async def __call__(self, request: GuardrailRequest, *, deadline: float) -> GuardrailAnswer:
        """Return the judgement of the content.

        Raises:
            InvalidArgumentError: A field is wrong.
            RouterError: Nothing was decided: the content is to be held.
        """
        check_guardrail(request, now=self._clock.now())
        run = Run.begin(
            request.context, operation=Operation.GUARDRAIL_EVALUATION, deadline=deadline, start=self._clock.monotonic()
        )
        return await self._course.take(run, lambda run: self._judge(run, request))

    async def _judge(self, run: Run, request: GuardrailRequest) -> GuardrailAnswer:
        def compose(viability: Viability) -> ChatCall:
            return judging_call(request, self._prompts, viability)

        paid = await self._ask(run, compose)
        try:
            judgement = read_judgement(paid.value.text, request)
        except UnusableAnswerError as error:
            paid, judgement = await self._repair(run, request, paid, str(error))
        return await self._conclude(run, paid, judgement)

    async def _ask(self, run: Run, compose: Callable[[Viability], ChatCall]) -> Paid[Completion]:
        paid = await self._calls.ask(run, ChatQuestion(run.operation, compose, self._vendors))
        if paid.value.is_refused:
            # A refusal or a block is the provider's judgement in the place of the policy's; no repair changes it.
            await self._conclude_refusal(run, paid)
        return paid

    async def _repair(
        self, run: Run, request: GuardrailRequest, paid: Paid[Completion], problem: str
    ) -> tuple[Paid[Completion], Judgement]:
        """Show the model its answer and ask once more, on a reservation of its own."""
        await self._calls.settle(run, paid, is_final=False)
        malformed = AnswerMalformedError(provider=paid.route.provider, model=paid.value.model)
        if paid.value.finish_reason in _BEYOND_REPAIR:
            raise malformed
        answer = paid.value.text

        def compose(viability: Viability) -> ChatCall:
            asked = judging_call(request, self._prompts, viability)
            return repairing_call(asked, answer=answer, problem=problem, prompts=self._prompts)

        repaired = await self._ask(run, compose)
        try:
            return repaired, read_judgement(repaired.value.text, request)
        except UnusableAnswerError:
            # Not final: a retry may ask again, within the same caps.
            await self._calls.settle(run, repaired, is_final=False)
            raise malformed from None

    async def _conclude_refusal(self, run: Run, paid: Paid[Completion]) -> None:
        refusal = ContentHeldError(provider=paid.route.provider)
        kept = encode_kept(KeptRefusal(provider=paid.route.provider))
        sealed = self._seal.seal(kept, request_id=run.request_id, agent_id=run.agent_id)
        await self._calls.settle(run, paid, is_final=True, sealed_answer=sealed)
        raise refusal

    async def _conclude(self, run: Run, paid: Paid[Completion], judgement: Judgement) -> GuardrailAnswer:
        # Kept as settled, which it is by the time that anybody could ask for it again.
        receipt = run.receipt(
            paid.reserve.attribution,
            model=paid.value.model or paid.route.model.model_id,
            now=self._clock.monotonic(),
            finish_reason=paid.value.finish_reason,
            settlement=Settlement.SETTLED,
        )
        answer = GuardrailAnswer(judgement=judgement, prompt_version=self._prompts.version, receipt=receipt)
        sealed = self._seal.seal(
            encode_kept(KeptGuardrail(answer=answer)), request_id=run.request_id, agent_id=run.agent_id
        )
        await self._calls.settle(run, paid, is_final=True, sealed_answer=sealed)
        if run.settlement is Settlement.SETTLED:
            return answer
        return replace(answer, receipt=replace(receipt, settlement=run.settlement))


def _replay(kept: Kept) -> GuardrailAnswer:
    if isinstance(kept, KeptRefusal):
        raise ContentHeldError(provider=kept.provider)
    if not isinstance(kept, KeptGuardrail):
        raise AnswerNotKeptError
    receipt = replace(kept.answer.receipt, settlement=Settlement.SETTLED, is_replay=True)
    return replace(kept.answer, receipt=receipt)

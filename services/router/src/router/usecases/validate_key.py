"""Tests a key at its provider: lists models for free, asks one small question of each kind, and tells KeyVault.

A key that the provider rejects is an answer. A failed listing never rejects a key: self-hosted servers and gateways
often have none. The probes are reserved and settled like any other call.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from catalogue.models import Operation
from router.domain import errors
from router.domain.answers import Coverage, Kept, KeptValidation, ValidationAnswer, encode_kept
from router.domain.completions import FinishReason
from router.domain.embeddings import EmbeddingPurpose
from router.domain.guardrails import UnusableAnswerError, judging_call, read_judgement
from router.domain.leases import Lease, LeaseQuery, Payer, PlatformCause
from router.domain.operations import GuardrailRequest, KeyValidationRequest, OperationContext, check_key_validation
from router.domain.receipts import Settlement
from router.domain.refusals import (
    AnswerNotKeptError,
    LeaseEndedError,
    PriceUnknownError,
    ProviderKeyNotFoundError,
    RouterError,
)
from router.domain.routes import Route
from router.ports import KeyVerdict, ValidationReport
from router.usecases.courses import Course
from router.usecases.paid_calls import Funding, Paid
from router.usecases.questions import ChatQuestion, EmbedQuestion
from router.usecases.runs import Run

if TYPE_CHECKING:
    from catalogue.models import Viability
    from router.domain.completions import ChatCall
    from router.domain.guardrails import GuardrailPrompts
    from router.domain.leases import DueKey
    from router.domain.selection import RouteSelection
    from router.ports import AnswerSeal, KeyAuthority
    from router.usecases.activity import Activity
    from router.usecases.paid_calls import Question
    from router.usecases.provider_calls import ProviderCalls
    from router.usecases.questions import Vendors
    from servicekit.clock import Clock

MODELS_TOLD_MAX: Final = 500
EXPLANATION_LENGTH_MAX: Final = 500
_LEASES_MAX: Final = 3
# Probed, in this order; the others are covered by what the catalogue and the listing say.
_PROBED: Final = (Operation.GUARDRAIL_EVALUATION, Operation.EMBEDDING_GENERATION)
_COVERABLE: Final = (*_PROBED, Operation.TASK_DECOMPOSITION, Operation.EVIDENCE_VERIFICATION, Operation.CHAT)
_PROBE_TEXT: Final = "The quick brown fox jumps over the lazy dog."
_PROBE_POLICY: Final = "Content must not insult anybody."
_DECIDES: Final = {errors.KeyRejectedError: KeyVerdict.REJECTED, errors.NoCreditError: KeyVerdict.NO_CREDIT}
_ABOUT_THE_MODEL: Final = (
    errors.BadRequestError,
    errors.ModelGoneError,
    errors.PermissionRefusedError,
    errors.EmbeddingsUnsupportedError,
    errors.MalformedAnswerError,
)


@dataclass(slots=True, kw_only=True)
class _Findings:
    """What is known of the key so far, and the last probe, whose settlement closes the operation."""

    is_free: bool = False
    verdict: KeyVerdict | None = None
    explanation: str = ""
    models: tuple[str, ...] = ()
    is_listed: bool = False
    routes: dict[Operation, Route] = field(default_factory=dict)
    missing: dict[Operation, str] = field(default_factory=dict)
    probed: set[Operation] = field(default_factory=set)
    doubt: str = ""
    answered: bool = False
    paid: Paid[object] | None = None


class ValidateKey:
    """The use case of ValidateKey."""

    def __init__(  # noqa: PLR0913 (its collaborators; all are keyword-only)
        self,
        *,
        keys: KeyAuthority,
        calls: ProviderCalls,
        routes: RouteSelection,
        vendors: Vendors,
        prompts: GuardrailPrompts,
        seal: AnswerSeal,
        clock: Clock,
        activity: Activity,
    ) -> None:
        """Probe through `calls`, and tell `keys` what was found."""
        self._keys = keys
        self._calls = calls
        self._routes = routes
        self._vendors = vendors
        self._prompts = prompts
        self._seal = seal
        self._clock = clock
        self._course: Course[ValidationAnswer] = Course(seal=seal, clock=clock, activity=activity, replay=_replay)

    async def __call__(
        self, request: KeyValidationRequest, *, deadline: float, due: DueKey | None = None
    ) -> ValidationAnswer:
        """Return what the provider says of the key, after KeyVault has changed the key's state by it.

        A key that is due by itself comes with its lease. Where nothing may be spent on it, the free listing alone is
        asked for, and a listing that says nothing of the key is not told: the key goes on as it is.

        Raises:
            InvalidArgumentError: A field is wrong.
            RouterError: The key may not be tested, or could not be reported on.
        """
        check_key_validation(request, now=self._clock.now())
        run = Run(
            request_id=request.request_id,
            agent_id="",
            body_hash=request.body_hash,
            operation=Operation.KEY_VALIDATION,
            deadline=deadline,
            start=self._clock.monotonic(),
            acting_for=request.acting_for,
        )
        return await self._course.take(run, lambda run: self._validate(run, request, due))

    async def _validate(self, run: Run, request: KeyValidationRequest, due: DueKey | None) -> ValidationAnswer:
        findings = _Findings(is_free=due is not None and due.is_free)
        try:
            answer = await self._examine(run, request, findings, due)
        except BaseException:
            if findings.paid is not None:
                self._calls.settle_later(findings.paid)
            raise
        return await self._close(run, findings, answer)

    async def _examine(
        self, run: Run, request: KeyValidationRequest, findings: _Findings, due: DueKey | None
    ) -> ValidationAnswer:
        """Go through listing, probes and report, on another lease where one ends in between."""
        lease = None if due is None else due.lease
        for leases_left in reversed(range(_LEASES_MAX)):
            lease = lease or await self._lease(request)
            self._find_routes(lease, findings)
            try:
                if not findings.is_listed:
                    await self._list_models(run, lease, findings)
                if findings.verdict is None and not findings.is_free:
                    await self._probe_all(run, request, lease, findings)
                return await self._report(request, lease, _judged(findings))
            except LeaseEndedError:
                if not leases_left:
                    raise
                lease = None
        raise AssertionError  # pragma: no cover (the loop returns or raises)

    async def _lease(self, request: KeyValidationRequest) -> Lease:
        lease = await self._keys.acquire(
            LeaseQuery(operation=Operation.KEY_VALIDATION, key_id=request.key_id, acting_for=request.acting_for)
        )
        if not isinstance(lease, Lease):
            raise ProviderKeyNotFoundError(provider_key_id=request.key_id)
        return lease

    def _find_routes(self, lease: Lease, findings: _Findings) -> None:
        for operation in _COVERABLE:
            try:
                findings.routes[operation] = self._routes.find(lease, operation)
            except RouterError as error:
                findings.missing[operation] = error.message

    async def _list_models(self, run: Run, lease: Lease, findings: _Findings) -> None:
        route = next(iter(findings.routes.values()), None) or self._routes.bare(lease)
        codec = self._vendors.codecs.chat(route)
        try:
            response = await self._calls.send_free(
                run,
                lease,
                codec.build_list_models(route),
                classify=lambda answered: codec.classify(answered, route),
            )
            findings.models = codec.parse_models(response, route)
            findings.is_listed = True
        except errors.ProviderError as error:
            self._note(findings, error)

    async def _probe_all(self, run: Run, request: KeyValidationRequest, lease: Lease, findings: _Findings) -> None:
        funding = Funding(
            lease=lease,
            account=lease.account,
            # A key is tested for whoever owns it; there is no agent whose owner could be named.
            owner_id=lease.owner_id or (lease.owned_by.id if lease.payer is Payer.OWNER else ""),
            binding_index=lease.binding_index,
            platform_cause=PlatformCause.OPERATION_IS_PLATFORMS if lease.payer is Payer.PLATFORM else None,
        )
        for operation in _PROBED:
            route = findings.routes.get(operation)
            if route is None or operation in findings.probed or findings.verdict is not None:
                continue
            question = self._question(operation, request)
            try:
                paid = await self._calls.attempt(run, question, funding, route)
                findings.probed.add(operation)
            except errors.ProviderError as error:
                findings.probed.add(operation)
                self._note(findings, error, operation)
                continue
            except PriceUnknownError as error:
                # Says nothing of the key, nor of the operations whose model has a price.
                findings.missing[operation] = error.message
                continue
            if findings.paid is not None:
                await self._calls.settle(run, findings.paid, is_final=False)
            findings.paid = paid
            findings.answered = True
            self._check_answer(operation, request, paid, findings)

    def _question(self, operation: Operation, request: KeyValidationRequest) -> Question[object]:
        if operation is Operation.EMBEDDING_GENERATION:
            return EmbedQuestion(
                (_PROBE_TEXT,), purpose=EmbeddingPurpose.UNSPECIFIED, space=None, vendors=self._vendors
            )
        probe = _probe(request)

        def compose(viability: Viability) -> ChatCall:
            return judging_call(probe, self._prompts, viability)

        return ChatQuestion(operation, compose, self._vendors)

    def _check_answer(
        self, operation: Operation, request: KeyValidationRequest, paid: Paid[object], findings: _Findings
    ) -> None:
        text = getattr(paid.value, "text", None)
        if text is None:
            return
        try:
            read_judgement(text, _probe(request))
        except UnusableAnswerError:
            name = paid.route.model.model_id
            findings.missing[operation] = f"{name} did not answer in the JSON asked for. Map another model."

    def _note(self, findings: _Findings, error: errors.ProviderError, operation: Operation | None = None) -> None:
        for kind, verdict in _DECIDES.items():
            if isinstance(error, kind):
                findings.verdict = verdict
                findings.explanation = error.message
                return
        if operation is not None and isinstance(error, _ABOUT_THE_MODEL):
            findings.answered = True
            findings.missing[operation] = error.message
        else:
            findings.doubt = error.message

    async def _report(self, request: KeyValidationRequest, lease: Lease, findings: _Findings) -> ValidationAnswer:
        verdict = findings.verdict or KeyVerdict.INCONCLUSIVE
        coverage = tuple(self._coverage(operation, findings) for operation in _COVERABLE)
        models = findings.models[:MODELS_TOLD_MAX]
        explanation = findings.explanation[:EXPLANATION_LENGTH_MAX]
        answer = ValidationAnswer(verdict=verdict, explanation=explanation, models=models, coverage=coverage, key=b"")
        if findings.is_free and verdict is KeyVerdict.INCONCLUSIVE:
            return answer
        key = await self._keys.report_validation(
            ValidationReport(
                request_id=request.request_id,
                lease=lease,
                verdict=verdict,
                explanation=explanation,
                models=models,
                operations=tuple(each.operation for each in coverage if each.is_covered),
            )
        )
        return replace(answer, key=key)

    def _coverage(self, operation: Operation, findings: _Findings) -> Coverage:
        route = findings.routes.get(operation)
        missing = findings.missing.get(operation, "")
        if findings.verdict is not KeyVerdict.VALID and not missing:
            missing = "The key does not work yet."
        model = route.model.model_id if route is not None else ""
        return Coverage(operation=operation, is_covered=not missing, model=model, missing=missing)

    async def _close(self, run: Run, findings: _Findings, answer: ValidationAnswer) -> ValidationAnswer:
        paid = findings.paid
        if paid is None:
            return answer
        receipt = run.receipt(
            paid.reserve.attribution,
            model=paid.route.model.model_id,
            now=self._clock.monotonic(),
            finish_reason=FinishReason.STOP,
        )
        kept = KeptValidation(answer=replace(answer, receipt=receipt))
        sealed = self._seal.seal(encode_kept(kept), request_id=run.request_id, agent_id=run.agent_id)
        await self._calls.settle(run, paid, is_final=True, sealed_answer=sealed)
        return replace(answer, receipt=replace(receipt, settlement=run.settlement))


def _judged(findings: _Findings) -> _Findings:
    """Decide what the findings say of the key as a whole."""
    if findings.verdict is None:
        if findings.is_listed or findings.answered:
            findings.verdict = KeyVerdict.VALID
            covered = [each for each in findings.routes if each not in findings.missing]
            named = ", ".join(each.value.replace("_", " ") for each in covered)
            findings.explanation = f"The key works. It covers: {named}." if covered else _no_cover(findings)
        else:
            findings.verdict = KeyVerdict.INCONCLUSIVE
            findings.explanation = findings.doubt or "The provider said nothing of the key. Map a model and try again."
    return findings


def _no_cover(findings: _Findings) -> str:
    why = next(iter(findings.missing.values()), "Map a model.")
    return f"The key works, but covers no operation: {why}"


def _probe(request: KeyValidationRequest) -> GuardrailRequest:
    context = OperationContext(request_id=request.request_id, body_hash=request.body_hash)
    return GuardrailRequest(context=context, content=_PROBE_TEXT, policy_text=_PROBE_POLICY)


def _replay(kept: Kept) -> ValidationAnswer:
    if not isinstance(kept, KeptValidation):
        raise AnswerNotKeptError
    receipt = kept.answer.receipt
    if receipt is not None:
        receipt = replace(receipt, settlement=Settlement.SETTLED, is_replay=True)
    return replace(kept.answer, receipt=receipt)

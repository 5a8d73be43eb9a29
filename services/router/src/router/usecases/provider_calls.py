"""One bounded, paid call to a provider: lease, route, reserve, attempt, and what a failure means for the next step.

    lease ──▶ route ──▶ reserve ──▶ attempt ──▶ Paid, which its owner settles
      ▲                               │
      └── next candidate, or retry ◀──┘ released (never billed) or in suspense (perhaps billed)

Whatever ends an attempt, its hold is disposed of exactly once: settled, released or put into suspense.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from catalogue.models import Operation
from router.domain import errors
from router.domain.leases import Lease, LeaseQuery, NoKey, Outcome, OutcomeKind, PlatformCause
from router.domain.receipts import Settlement
from router.domain.refusals import (
    CallClosedError,
    EgressForbiddenError,
    EmbeddingSpaceUnavailableError,
    KeyRequiredError,
    LeaseEndedError,
    ProviderRateLimitedError,
    RouterError,
    SuiteUnavailableError,
    refusal_of,
)
from router.domain.reservations import Attribution, Estimate, FinalOutcome, Grant, Reserve
from router.ports import Attempt
from router.usecases.paid_calls import AlreadyFinal, Funding, Held, Paid, Question, Value_co

if TYPE_CHECKING:
    from collections.abc import Callable

    from router.domain.leases import Account
    from router.domain.routes import Route
    from router.domain.selection import RouteSelection
    from router.domain.wire import WireRequest, WireResponse
    from router.ports import Admission, KeyAuthority, ProviderTransport
    from router.usecases.activity import Activity
    from router.usecases.paid_calls import CallLimits
    from router.usecases.runs import Run
    from servicekit.clock import Clock

Classify: TypeAlias = "Callable[[WireResponse], errors.ProviderError]"


# That the keys which exist failed says more than that there is no other one.
# Each skips twice as many numbers as the one before.
_SKIPS_MAX: Final = 12
_NO_OTHER_KEY: Final = (KeyRequiredError, EmbeddingSpaceUnavailableError, ProviderRateLimitedError)


_OUTCOMES: Final[tuple[tuple[type[errors.ProviderError], OutcomeKind], ...]] = (
    (errors.KeyRejectedError, OutcomeKind.KEY_REJECTED),
    (errors.NoCreditError, OutcomeKind.NO_CREDIT),
    (errors.ThrottledError, OutcomeKind.RATE_LIMITED),
    (errors.DailyQuotaError, OutcomeKind.QUOTA_EXHAUSTED),
    (errors.ContentRefusedError, OutcomeKind.CONTENT_REFUSED),
    (errors.BadRequestError, OutcomeKind.BAD_REQUEST),
    (errors.ModelGoneError, OutcomeKind.MODEL_UNAVAILABLE),
    (errors.PermissionRefusedError, OutcomeKind.MODEL_UNAVAILABLE),
    (errors.ProviderTimeoutError, OutcomeKind.NO_ANSWER),
    (errors.ConnectionLostError, OutcomeKind.NO_ANSWER),
    (errors.ProviderUnreachableError, OutcomeKind.NO_ANSWER),
    (errors.ProviderError, OutcomeKind.PROVIDER_UNAVAILABLE),
)
# What no other key or model can help: the content itself, or a request that our own codec got wrong.
_ENDS_THE_SEARCH: Final = (errors.ContentRefusedError, errors.BadRequestError)


class ProviderCalls:
    """Asks questions of providers, on the best key, within every limit."""

    def __init__(  # noqa: PLR0913 (one collaborator per step of the hot path; all are keyword-only)
        self,
        *,
        keys: KeyAuthority,
        admission: Admission,
        transport: ProviderTransport,
        routes: RouteSelection,
        clock: Clock,
        limits: CallLimits,
        activity: Activity,
    ) -> None:
        """Take a collaborator for each step."""
        self._keys = keys
        self._admission = admission
        self._transport = transport
        self._routes = routes
        self._clock = clock
        self._limits = limits
        self._activity = activity
        self._attempt_timeout = limits.attempt_timeout.total_seconds()
        self._settle_margin = limits.settle_margin.total_seconds()

    async def ask(self, run: Run, question: Question[Value_co]) -> Paid[Value_co]:
        """Ask one question of the best candidates in turn until one answers.

        Raises:
            AlreadyFinal: The operation is closed; its outcome is to be given again.
            RouterError: No candidate answered, or none may be asked.
        """
        failure: RouterError | None = None
        lease_losses = attempts = 0
        while True:
            funding = await self._fund(run, question, failure)
            route = self._routes.find(funding.lease, question.operation, question.required_space)
            try:
                return await self.attempt(run, question, funding, route)
            except LeaseEndedError:
                lease_losses += 1
                if lease_losses > self._limits.lease_losses_max:
                    raise
            except errors.ProviderError as error:
                attempts += 1
                failure = refusal_of(error, key_id=funding.lease.key_id, model=route.model.model_id)
                if not self._may_go_on(run, error, attempts):
                    raise failure from None
                if error.may_have_been_billed and error.retryable:
                    await self._clock.sleep(self._limits.attempt_pause * attempts)
                else:
                    run.excluded_key_ids.append(funding.lease.key_id)

    def _may_go_on(self, run: Run, error: errors.ProviderError, attempts: int) -> bool:
        return (
            (error.retryable or not isinstance(error, _ENDS_THE_SEARCH))
            and attempts < self._limits.attempts_max
            and len(run.excluded_key_ids) < self._limits.candidates_max
            and self._clock.monotonic() < run.deadline - self._settle_margin
        )

    async def _fund(self, run: Run, question: Question[Value_co], failure: RouterError | None) -> Funding:
        """Return the key of the next candidate, the platform's when there is none of the agent's."""
        try:
            return await self._find_key(run, question)
        except RouterError as error:
            if run.call_index == 0:
                # A key that was revoked since must not hide an answer that has been paid for.
                await self._raise_if_final(run)
            if failure is not None and isinstance(error, _NO_OTHER_KEY):
                raise failure from None
            raise

    async def _find_key(self, run: Run, question: Question[Value_co]) -> Funding:
        excluded = tuple(run.excluded_key_ids)
        query = LeaseQuery(
            operation=question.operation,
            agent_id=run.agent_id,
            acting_for=run.acting_for,
            excluded_key_ids=excluded,
            required_space=question.required_space,
        )
        found = await self._keys.acquire(query)
        if isinstance(found, Lease):
            cause = None if run.agent_id else PlatformCause.CALLER_REQUESTED
            return Funding(
                lease=found,
                account=found.account,
                owner_id=found.owner_id,
                binding_index=found.binding_index,
                platform_cause=cause,
            )
        if not run.agent_id:
            raise _no_key(query, found)
        return await self._find_platform_key(query, found)

    async def _find_platform_key(self, query: LeaseQuery, missing: NoKey) -> Funding:
        # The lease comes first because the hold needs its model's price; what permits spending it is the reserve.
        platform = await self._keys.acquire(replace(query, agent_id="", acting_for=None))
        if not isinstance(platform, Lease) or missing.account is None:
            raise _no_key(query, missing)
        return Funding(
            lease=platform,
            account=missing.account,
            owner_id=missing.owner_id,
            binding_index=missing.binding_index,
            platform_cause=missing.cause,
        )

    async def _raise_if_final(self, run: Run, account: Account | None = None) -> None:
        """Check that there is no outcome yet; one that may not even begin says so too."""
        try:
            outcome = await self._admission.lookup(
                request_id=run.request_id, agent_id=run.agent_id, account=account, body_hash=run.body_hash
            )
        except SuiteUnavailableError:
            return
        if outcome is not None:
            raise AlreadyFinal(outcome)

    async def attempt(self, run: Run, question: Question[Value_co], funding: Funding, route: Route) -> Paid[Value_co]:
        """Make one attempt on a given key and route.

        Raises:
            AlreadyFinal: The operation is closed.
            LeaseEndedError: The lease ended before anything was sent; its hold is released.
            ProviderError: The call failed; its hold is disposed of by what may have been billed.
            RouterError: The reservation was denied.
        """
        request = question.build(route, None)
        reserve, granted = await self._reserve(run, question.estimate(route, request), funding, route)
        if isinstance(granted, FinalOutcome):
            raise AlreadyFinal(granted)
        run.payer = funding.payer
        run.payer_rule = granted.payer_rule
        run.reservation_ids.append(granted.reservation_id)
        if granted.granted_output_tokens < reserve.estimate.output_tokens_max:
            request = question.build(route, granted.granted_output_tokens)
        return await self._send(
            run, question, funding.lease, Held(route=route, reserve=reserve, grant=granted), request
        )

    async def _reserve(
        self, run: Run, estimate: Estimate, funding: Funding, route: Route
    ) -> tuple[Reserve, Grant | FinalOutcome]:
        for _ in range(_SKIPS_MAX):
            reserve = self._reserve_of(run, estimate, funding, route)
            try:
                return reserve, await self._admission.reserve(reserve)
            except CallClosedError:
                # The caller came again after a failure that was not final: calls of its earlier runs stay closed, so
                # that no stalled duplicate of theirs can be granted.
                run.skip_calls()
        raise CallClosedError

    def _reserve_of(self, run: Run, estimate: Estimate, funding: Funding, route: Route) -> Reserve:
        lease = funding.lease
        remaining = timedelta(seconds=max(0.0, run.deadline - self._clock.monotonic()))
        return Reserve(
            request_id=run.request_id,
            call_index=run.next_call_index(),
            attribution=Attribution(
                account=funding.account,
                agent_id=run.agent_id,
                owner_id=funding.owner_id,
                operation=run.operation,
                payer=funding.payer,
                provider=lease.provider,
                model=route.model.model_id,
                key_id=lease.key_id,
                lease_id=lease.lease_id,
                binding_index=funding.binding_index,
                subject=run.subject,
                platform_cause=funding.platform_cause,
                platform_purpose=run.platform_purpose,
            ),
            estimate=estimate,
            body_hash=run.body_hash,
            hold_ttl=min(remaining + self._limits.hold_margin, self._limits.hold_ttl_max),
        )

    async def _send(
        self, run: Run, question: Question[Value_co], lease: Lease, held: Held, request: WireRequest
    ) -> Paid[Value_co]:
        route = held.route
        start = self._clock.monotonic()
        attempt = self._attempt(run, question, lease, held)
        self._activity.waiting += 1
        try:
            response = await self._transport.send(request, attempt)
            run.calls += 1
            value, usage = question.read(response, route)
        except errors.ProviderError as error:
            run.calls += held.is_sent
            self._dispose_failed(run, question, held, error)
            self._note_failure(run, lease, route, error)
            raise
        except (LeaseEndedError, EgressForbiddenError):
            self._release(run, held)
            raise
        except BaseException as error:
            # The caller hung up, or something of ours broke: what was sent may be billed.
            self._dispose_abandoned(run, held, is_final=isinstance(error, asyncio.CancelledError))
            if held.is_sent and isinstance(error, asyncio.CancelledError):
                self._report(run, lease, route, OutcomeKind.CANCELLED, None)
            raise
        finally:
            self._activity.waiting -= 1
            latency = self._clock.monotonic() - start
            run.provider_latency += latency
        if usage is not None:
            run.add_usage(usage)
        self._report(run, lease, route, OutcomeKind.SUCCEEDED, None)
        return Paid(
            value=value,
            usage=usage,
            route=route,
            reserve=held.reserve,
            grant=held.grant,
            latency=timedelta(seconds=latency),
        )

    def _attempt(self, run: Run, question: Question[Value_co], lease: Lease, held: Held) -> Attempt:
        def before_first_byte() -> None:
            self._keys.ensure_usable(lease)
            held.is_sent = True

        def on_retry(error: errors.ProviderError) -> None:
            run.calls += 1
            self._note_failure(run, lease, held.route, error)

        return Attempt(
            provider=lease.provider,
            secret=lease.secret,
            deadline=min(self._clock.monotonic() + self._attempt_timeout, run.deadline - self._settle_margin),
            before_first_byte=before_first_byte,
            classify=lambda response: question.classify(response, held.route),
            on_retry=on_retry,
        )

    async def send_free(self, run: Run, lease: Lease, request: WireRequest, *, classify: Classify) -> WireResponse:
        """Make a call that no vendor bills, such as a listing of models, without a reservation.

        Raises:
            AlreadyFinal: The operation is closed.
            CustodyLogRolledBackError: No call may begin: a key that was revoked may be in force again.
            LeaseEndedError: The lease ended before anything was sent.
            ProviderError: Nothing came back.
        """
        await self._raise_if_final(run, lease.account)
        now = self._clock.monotonic()
        attempt = Attempt(
            provider=lease.provider,
            secret=lease.secret,
            deadline=min(now + self._attempt_timeout, run.deadline - self._settle_margin),
            before_first_byte=lambda: self._keys.ensure_usable(lease),
            classify=classify,
            on_retry=lambda _error: None,
        )
        return await self._transport.send(request, attempt)

    def settle_later(self, paid: Paid[object]) -> None:
        """Settle a paid call of an operation that fails for another reason; the operation stays open."""
        self._admission.settle_later(paid.charge(is_final=False))

    async def settle(self, run: Run, paid: Paid[object], *, is_final: bool, sealed_answer: bytes = b"") -> None:
        """Settle a paid call, waiting a little for it to be counted."""
        charge = paid.charge(is_final=is_final, sealed_answer=sealed_answer)
        run.add_settlement(await self._admission.settle(charge))

    def _dispose_failed(self, run: Run, question: Question[object], held: Held, error: errors.ProviderError) -> None:
        usage = question.price(error.usage, held.route) if error.usage is not None else None
        if usage is not None:
            run.add_usage(usage)
            run.add_settlement(Settlement.PENDING)
            self._admission.settle_later(held.charge(usage, is_final=False))
        elif error.may_have_been_billed and held.is_sent:
            run.add_settlement(Settlement.SUSPENSE)
            self._admission.settle_later(held.charge(None, is_final=False))
        else:
            self._release(run, held)

    def _dispose_abandoned(self, run: Run, held: Held, *, is_final: bool) -> None:
        if held.is_sent:
            run.add_settlement(Settlement.SUSPENSE)
            self._admission.settle_later(held.charge(None, is_final=is_final))
        else:
            self._release(run, held)

    def _release(self, run: Run, held: Held) -> None:
        run.add_settlement(Settlement.RELEASED)
        self._admission.release_later(held.release())

    def _note_failure(self, run: Run, lease: Lease, route: Route, error: errors.ProviderError) -> None:
        run.add_failure(error, provider=lease.provider, model=route.model.model_id, key_id=lease.key_id)
        kind = next(kind for failure, kind in _OUTCOMES if isinstance(error, failure))
        self._report(run, lease, route, kind, error.retry_after)

    def _report(self, run: Run, lease: Lease, route: Route, kind: OutcomeKind, retry_after: timedelta | None) -> None:
        if run.operation is Operation.KEY_VALIDATION:
            # The verdict is reported as a whole; a report of its own would end the very lease that the test runs on.
            return
        self._keys.report(
            Outcome(
                lease_id=lease.lease_id,
                key_id=lease.key_id,
                key_version=lease.key_version,
                kind=kind,
                operation=run.operation,
                model=route.model.model_id,
                request_id=run.request_id,
                end_time=self._clock.monotonic(),
                retry_after=retry_after,
            )
        )


def _no_key(query: LeaseQuery, missing: NoKey) -> RouterError:
    if query.required_space is not None and missing.cause is PlatformCause.NO_KEY_FOR_OPERATION:
        return EmbeddingSpaceUnavailableError(space=query.required_space.name)
    if missing.retry_after is not None:
        # There is a key that will do; its provider has asked to wait. To add another is not what the owner must do.
        return ProviderRateLimitedError(provider="", retry_after=missing.retry_after)
    return KeyRequiredError(cause=missing.cause)

"""Talks to Metering's AdmissionService: reserves, settlements and releases of all operations share batches.

A settlement is in the journal before it is sent and stays there until it is durable in Postgres, so that Metering may
be away, restarted or rebuilt meanwhile. A reservation whose answer is lost or no longer wanted is released.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

import grpc
import structlog
from typing_extensions import override

from byok.metering.v1.admission_service_pb2 import (
    OPERATION_STATE_FINAL,
    ListWatermarksRequest,
    LookupRequest,
    ReleaseBatchRequest,
    ReserveBatchRequest,
    SettleBatchRequest,
)
from byok.metering.v1.reservation_pb2 import ReleaseItem, ReserveItem, SettleItem
from router.adapters.reservation_messages import (
    final_outcome_of,
    final_outcome_of_settlement,
    grant_of,
    refusal_by_metering,
    release_item,
    reserve_item,
    settle_item,
    unknown_release_item,
)
from router.domain.receipts import Settlement
from router.domain.refusals import (
    CallClosedError,
    CustodyLogRolledBackError,
    RequestIdReusedError,
    SuiteUnavailableError,
)
from router.domain.reservations import FinalOutcome, Grant, Reserve
from router.messages import account_message
from router.ports import Admission
from servicekit.coalescer import Coalescer, CoalescerLimits
from servicekit.errors import DomainError
from servicekit.wire import error_from_rpc, remote_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from byok.metering.v1.admission_service_pb2_grpc import AdmissionServiceStub
    from byok.metering.v1.reservation_pb2 import ReleaseResult, ReserveResult, SettleResult
    from router.adapters.settlement_journal import SettlementJournal
    from router.domain.leases import Account
    from router.domain.reservations import Charge, Release
    from servicekit.clock import Clock

_log = structlog.get_logger("router.metering")

_DRAIN_POLL: Final = timedelta(milliseconds=50)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteringLimits:
    """Bounds of what is asked of Metering.

    Attributes:
        call_timeout: For one batch.
        settle_wait: How long an answer waits for its settlement before it goes out as PENDING.
        reserve_tries: How often a reserve is sent when no answer comes.
        resend_interval: How often the journal is looked at.
    """

    call_timeout: timedelta
    settle_wait: timedelta
    reserve_tries: int
    resend_interval: timedelta
    batch_max: int
    queue_max: int
    in_flight_max: int
    linger_max: timedelta


@dataclass(frozen=True, slots=True)
class _Asked:
    """A reserve on its way, with what it was made from."""

    reserve: Reserve
    item: ReserveItem


_Item: TypeAlias = "_Asked | SettleItem | ReleaseItem"
_Outcome: TypeAlias = "Grant | FinalOutcome | bool"


class MeteringClient(Admission):
    """Admission as the use cases see it; belongs to one event loop."""

    def __init__(
        self,
        stub: AdmissionServiceStub,
        *,
        journal: SettlementJournal,
        holder: str,
        limits: MeteringLimits,
        clock: Clock,
        active: Callable[[], int],
    ) -> None:
        """Hold as `holder`, one incarnation of this process."""
        self._stub = stub
        self._journal = journal
        self._holder = holder
        self._limits = limits
        self._clock = clock
        self._held: dict[str, ReserveItem] = {}
        self._timeout = limits.call_timeout.total_seconds()
        self._batches: Coalescer[_Item, _Outcome] = Coalescer(
            self._send,
            limits=CoalescerLimits(
                batch_max=limits.batch_max,
                queue_max=limits.queue_max,
                in_flight_max=limits.in_flight_max,
                linger_max=limits.linger_max,
            ),
            clock=clock,
            active=active,
            on_unclaimed=self._take_unclaimed,
        )

    @override
    async def reserve(self, reserve: Reserve, /) -> Grant | FinalOutcome:
        final = self._journal.final_settlement(reserve.request_id, reserve.attribution.agent_id)
        if final is not None:
            return final_outcome_of_settlement(final, reserve.body_hash)
        if self._journal.is_disposing_of(reserve.request_id, reserve.call_index):
            raise CallClosedError
        self._journal.ensure_room()
        asked = _Asked(reserve, reserve_item(reserve, holder=self._holder))
        for tries_left in reversed(range(self._limits.reserve_tries)):
            try:
                return self._take_hold(asked, await self._batches.submit(asked))
            except SuiteUnavailableError as error:
                if error.retry_after is not None or not tries_left:
                    # It may stand at Metering although its answer was lost.
                    self._release(unknown_release_item(reserve, holder=self._holder))
                    raise
        raise SuiteUnavailableError(service="metering")

    def _take_hold(self, asked: _Asked, outcome: _Outcome) -> Grant | FinalOutcome:
        if isinstance(outcome, FinalOutcome):
            return outcome
        if not isinstance(outcome, Grant):
            raise SuiteUnavailableError(service="metering")
        if self._journal.is_settling(outcome.reservation_id) or outcome.reservation_id in self._held:
            # The answer to an earlier run of the same operation, whose settlement is still on its way: two provider
            # calls on one hold would be counted once.
            raise CallClosedError
        self._held[outcome.reservation_id] = asked.item
        self._journal.open_holds = len(self._held)
        return outcome

    @override
    async def settle(self, charge: Charge, /) -> Settlement:
        item = self._remember(charge)
        try:
            is_applied = await self._batches.submit(item, must_send=True, patience=self._limits.settle_wait)
        except TimeoutError:
            is_applied = False
        except Exception as error:  # noqa: BLE001 (the call has been paid for: no fault of ours may lose its settlement)
            _log.warning("settlement.waits", reservation_id=item.reservation_id, error=type(error).__name__)
            self._journal.note_unsent([item.reservation_id])
            is_applied = False
        if charge.usage is None:
            return Settlement.SUSPENSE
        return Settlement.SETTLED if is_applied else Settlement.PENDING

    @override
    def settle_later(self, charge: Charge, /) -> None:
        self._submit_later(self._remember(charge))

    @override
    def release_later(self, release: Release, /) -> None:
        self._let_go(release.reserve, release.grant)
        self._release(release_item(release, holder=self._holder))

    @override
    async def lookup(
        self, *, request_id: str, agent_id: str, account: Account | None, body_hash: bytes
    ) -> FinalOutcome | None:
        final = self._journal.final_settlement(request_id, agent_id)
        if final is not None:
            return final_outcome_of_settlement(final, body_hash)
        request = LookupRequest(
            request_id=request_id,
            agent_id=agent_id,
            account=account_message(account) if account is not None else None,
            body_hash=body_hash,
        )
        try:
            response = await self._stub.Lookup(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            refused = error_from_rpc(error)
            if refused.reason == "REQUEST_ID_REUSED":
                raise RequestIdReusedError from None
            if refused.reason == "CUSTODY_LOG_ROLLED_BACK":
                raise CustodyLogRolledBackError from None
            raise SuiteUnavailableError(service="metering", retry_after=refused.retry_after) from None
        if response.state != OPERATION_STATE_FINAL:
            return None
        return final_outcome_of(response.final_outcome)

    async def keep_settling(self) -> None:
        """Send again what did not get through, and forget what is durable, until cancelled."""
        while True:
            await self._clock.sleep(self._limits.resend_interval)
            await self._look_after_journal()

    async def drain(self) -> None:
        """Wait until nothing is undurable; the caller bounds the time."""
        while self._journal.size:
            await self._look_after_journal()
            if self._journal.size:
                await self._clock.sleep(_DRAIN_POLL)

    async def aclose(self) -> None:
        """Send what is queued."""
        await self._batches.aclose()

    def _remember(self, charge: Charge) -> SettleItem:
        item = settle_item(charge, self._let_go(charge.reserve, charge.grant))
        self._journal.add_settlement(item)
        return item

    def _let_go(self, reserve: Reserve, grant: Grant) -> ReserveItem:
        """Return what was sent to take a hold that is being disposed of."""
        asked = self._held.pop(grant.reservation_id, None)
        self._journal.open_holds = len(self._held)
        return asked if asked is not None else reserve_item(reserve, holder=self._holder)

    def _release(self, item: ReleaseItem) -> None:
        self._journal.add_release(item)
        self._submit_later(item)

    def _submit_later(self, item: SettleItem | ReleaseItem) -> None:
        try:
            self._batches.submit_nowait(item)
        except DomainError:
            # The journal has it; it goes out with the next look after it.
            if isinstance(item, SettleItem):
                self._journal.note_unsent([item.reservation_id])
            else:
                self._journal.note_release_unsent(item)

    def _take_unclaimed(self, item: _Item, outcome: _Outcome | Exception) -> None:
        """Give back what was granted, or may have been, to a caller who has left."""
        if not isinstance(item, _Asked):
            return
        if isinstance(outcome, Grant):
            release = unknown_release_item(item.reserve, holder=self._holder)
            release.reservation_id = outcome.reservation_id
            self._release(release)
        elif isinstance(outcome, SuiteUnavailableError | asyncio.CancelledError):
            self._release(unknown_release_item(item.reserve, holder=self._holder))

    async def _look_after_journal(self) -> None:
        if not self._journal.size:
            return
        for item in self._journal.take_unsent_settlements():
            self._submit_later(item)
        for release in self._journal.take_unsent_releases():
            self._submit_later(release)
        try:
            response = await self._stub.ListWatermarks(ListWatermarksRequest(), timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            _log.warning("settlements.waiting", settlements=self._journal.size, code=error.code().name)
            return
        self._journal.note_watermarks(response.watermarks)

    async def _send(self, items: list[_Item]) -> Sequence[_Outcome | Exception]:
        """Send one batch of each kind at once, and put the outcomes back in order."""
        reserves = [(place, item) for place, item in enumerate(items) if isinstance(item, _Asked)]
        settles = [(place, item) for place, item in enumerate(items) if isinstance(item, SettleItem)]
        releases = [(place, item) for place, item in enumerate(items) if isinstance(item, ReleaseItem)]
        outcomes: list[_Outcome | Exception] = [False] * len(items)
        calls = []
        if reserves:
            calls.append(self._send_reserves(reserves, outcomes))
        if settles:
            calls.append(self._send_settles(settles, outcomes))
        if releases:
            calls.append(self._send_releases(releases))
        if len(calls) == 1:
            await calls[0]
        else:
            await asyncio.gather(*calls)
        return outcomes

    async def _send_reserves(self, reserves: list[tuple[int, _Asked]], outcomes: list[_Outcome | Exception]) -> None:
        request = ReserveBatchRequest(items=[asked.item for _, asked in reserves])
        try:
            response = await self._stub.ReserveBatch(request, timeout=self._timeout)
        except grpc.aio.AioRpcError as error:
            refused = error_from_rpc(error)
            for place, asked in reserves:
                attribution = asked.reserve.attribution
                outcomes[place] = refusal_by_metering(
                    refused, agent_id=attribution.agent_id, cause=attribution.platform_cause
                )
            return
        for (place, asked), result in zip(reserves, response.results, strict=True):
            outcomes[place] = _reserved(result, asked.reserve)

    async def _send_settles(self, settles: list[tuple[int, SettleItem]], outcomes: list[_Outcome | Exception]) -> None:
        request = SettleBatchRequest(items=[item for _, item in settles])
        unsent = {item.reservation_id for _, item in settles}
        try:
            response = await self._stub.SettleBatch(request, timeout=self._timeout)
            for (place, item), result in zip(settles, response.results, strict=True):
                outcomes[place] = self._take_settled(item, result)
                unsent.discard(item.reservation_id)
        except grpc.aio.AioRpcError as error:
            _log.warning("settlements.not_sent", settlements=len(settles), code=error.code().name)
        finally:
            # Whatever went wrong, also with us: what has no answer goes out again.
            self._journal.note_unsent(unsent)

    def _take_settled(self, item: SettleItem, result: SettleResult) -> bool:
        if result.WhichOneof("result") == "settled":
            self._journal.note_applied(item.reservation_id, result.settled.position)
            return True
        refused = remote_error(result.error)
        if refused.code in _WORTH_RESENDING:
            self._journal.note_unsent([item.reservation_id])
            return False
        # Nothing that we could send again would be taken: it is Metering's to say why, and an operator's to look.
        _log.error("settlement.refused", reservation_id=item.reservation_id, reason=refused.reason)
        self._journal.drop_settlement(item.reservation_id)
        return False

    async def _send_releases(self, releases: list[tuple[int, ReleaseItem]]) -> None:
        request = ReleaseBatchRequest(items=[item for _, item in releases])
        try:
            response = await self._stub.ReleaseBatch(request, timeout=self._timeout)
            for (_, item), result in zip(releases, response.results, strict=True):
                self._take_released(item, result)
        except grpc.aio.AioRpcError as error:
            _log.warning("releases.not_sent", releases=len(releases), code=error.code().name)
        finally:
            # Those that were taken are no longer in the journal.
            for _, item in releases:
                self._journal.note_release_unsent(item)

    def _take_released(self, item: ReleaseItem, result: ReleaseResult) -> None:
        if result.WhichOneof("result") == "error":
            refused = remote_error(result.error)
            if refused.code in _WORTH_RESENDING:
                return
            _log.warning("release.refused", request_id=item.call.request_id, reason=refused.reason)
        self._journal.drop_release(item)


_WORTH_RESENDING: Final = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL}
)


def _reserved(result: ReserveResult, reserve: Reserve) -> Grant | FinalOutcome | Exception:
    match result.WhichOneof("result"):
        case "grant":
            return grant_of(result.grant, reserve)
        case "final_outcome":
            return final_outcome_of(result.final_outcome)
        case _:
            attribution = reserve.attribution
            refused = remote_error(result.error)
            if refused.reason == "INVALID_ARGUMENT":
                # Ours to mend, and no caller's: it becomes an opaque INTERNAL.
                return RuntimeError(f"Metering does not understand a reserve: {refused.message}")
            return refusal_by_metering(refused, agent_id=attribution.agent_id, cause=attribution.platform_cause)

"""What was spent, and on what."""

from datetime import datetime, timedelta
from typing import Final

import msgspec

from metering.domain.accounts import partition_of
from metering.domain.errors import AccountNotFoundError, DependencyUnavailableError
from metering.domain.ledger import LedgerEntry
from metering.domain.principals import Principal, ensure_may_see
from metering.domain.usage import UsageQuery, UsageSummary
from metering.domain.windows import QUARTER, day_of, quarter_of, zone_of
from metering.ports import Directory, Ledger, Outbox
from servicekit.clock import Clock
from servicekit.errors import FieldViolation, InvalidArgumentError

_SPAN_MAX: Final = timedelta(days=800)


class GetUsageSummary:
    """Sums an account's ledger."""

    def __init__(self, *, directory: Directory, ledger: Ledger, outbox: Outbox, clock: Clock) -> None:
        """Use ports."""
        self._directory = directory
        self._ledger = ledger
        self._outbox = outbox
        self._clock = clock

    async def __call__(self, query: UsageQuery, acting_for: Principal) -> tuple[UsageSummary, str]:
        """Return sums and the account's time zone.

        Raises:
            AccountNotFoundError: The account does not exist, or is another's.
            InvalidArgumentError: The time ends before it starts, or is too long.
            DependencyUnavailableError: Postgres cannot be reached.
        """
        ensure_may_see(acting_for, query.account)
        account = await self._directory.find_account(query.account)
        if account is None:
            raise AccountNotFoundError("There is no such account of this principal.")
        now = self._clock.now()
        start = quarter_of(query.start or day_of(now, zone_of(account.time_zone)).start_time)
        end = quarter_of((query.end or now) + QUARTER - timedelta(microseconds=1))
        if end < start or end - start > _SPAN_MAX:
            raise InvalidArgumentError(
                violations=[
                    FieldViolation(
                        field="end_time",
                        reason="TIME_RANGE_INVALID",
                        description=f"must be after start_time, by at most {_SPAN_MAX.days} days",
                    )
                ]
            )
        # In this order: what was written before the backlog was seen empty is in the sums.
        is_complete = await self._has_no_backlog(query)
        asked = msgspec.structs.replace(query, start=start, end=end, time_zone=account.time_zone)
        summary = await self._ledger.summarize(asked)
        as_of: datetime = max(summary.as_of, now) if is_complete else summary.as_of
        return msgspec.structs.replace(summary, as_of=as_of), account.time_zone

    async def _has_no_backlog(self, query: UsageQuery) -> bool:
        partition = partition_of(query.account)
        watermark = (await self._ledger.watermarks())[partition]
        try:
            backlog = await self._outbox.backlog([watermark])
        except DependencyUnavailableError:
            # The ledger can be read without Redis; it only says less about how fresh it is.
            return False
        return backlog.get(partition) == 0


class ListLedgerEntries:
    """Pages through an account's entries."""

    def __init__(self, *, directory: Directory, ledger: Ledger) -> None:
        """Use ports."""
        self._directory = directory
        self._ledger = ledger

    async def __call__(self, query: UsageQuery, acting_for: Principal, *, after: str, count: int) -> list[LedgerEntry]:
        """Return entries, newest first.

        Raises:
            AccountNotFoundError: The account does not exist, or is another's.
            DependencyUnavailableError: Postgres cannot be reached.
        """
        ensure_may_see(acting_for, query.account)
        if await self._directory.find_account(query.account) is None:
            raise AccountNotFoundError("There is no such account of this principal.")
        return await self._ledger.list_entries(query, after=after, count=count)

"""Plans, from what changed in authority, when keys are due for a test call and when they expire."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from keyvault.domain.errors import AuthorityForgedError
from keyvault.domain.key_checks import CheckRules, KeyCheck, plan_check

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyvault.ports import KeyCheckStore, KeyRow
    from keyvault.usecases.report_corruption import ReportCorruption
    from keyvault.usecases.verify_rows import VerifyRows


class PlanKeyChecks:
    """Plans one batch; replicas that do so at once repeat each other's work and harm nothing."""

    def __init__(
        self,
        *,
        checks: KeyCheckStore,
        verify: VerifyRows,
        corruption: ReportCorruption,
        rules: CheckRules,
        batch_max: int,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Plan in `checks`."""
        self._checks = checks
        self._verify = verify
        self._corruption = corruption
        self._rules = rules
        self._batch_max = batch_max
        self._draw = draw

    async def __call__(self) -> bool:
        """Plan keys that changed; return whether there are more.

        Raises:
            UnavailableError: the store is away.
        """
        changed = await self._checks.read_changed(self._batch_max)
        if changed.next_position == changed.position:
            return False
        before = {
            check.provider_key_id: check
            for check in await self._checks.checks_of([row.found_by.provider_key_id for row in changed.rows])
        }
        planned: list[KeyCheck] = []
        ended: list[str] = []
        for row in changed.rows:
            key_id = row.found_by.provider_key_id
            check = await self._planned(row, before.get(key_id))
            if check is None:
                ended.append(key_id)
            else:
                planned.append(check)
        await self._checks.plan(planned, ended, changed)
        return not changed.is_complete

    async def _planned(self, row: KeyRow, before: KeyCheck | None) -> KeyCheck | None:
        try:
            stored = await self._verify.key(row)
        except AuthorityForgedError as error:
            # No test call on a row that nobody of ours wrote: it would be refused anyway.
            await self._corruption(row.found_by.provider_key_id, error)
            return None
        return plan_check(before, stored, rules=self._rules, drawn=self._draw())

"""Tests the keys that KeyVault says are due: so a key that failed finds back without its owner.

Any number of Routers may do so at once; KeyVault hands each key to one of them, and takes it back from one that dies.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final

from router.domain.leases import AccountKind
from router.domain.operations import KeyValidationRequest, Principal
from servicekit.errors import DomainError
from servicekit.ids import new_uuid7

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from router.domain.answers import ValidationAnswer
    from router.domain.leases import DueKey
    from router.ports import DueKeys
    from router.usecases.validate_key import ValidateKey
    from servicekit.clock import Clock

TESTER: Final = "router"


class CheckDueKeys:
    """Claims keys, a few at a time, and tests them."""

    def __init__(
        self,
        *,
        keys: DueKeys,
        validate_key: ValidateKey,
        clock: Clock,
        keys_max: int,
        timeout: timedelta,
        tell: Callable[[DueKey, ValidationAnswer | DomainError], None],
    ) -> None:
        """Test at most `keys_max` keys at once, each within `timeout`; `tell` is told what came of each."""
        self._keys = keys
        self._validate_key = validate_key
        self._clock = clock
        self._keys_max = keys_max
        self._timeout = timeout
        self._tell = tell

    async def __call__(self) -> timedelta:
        """Test keys that are due, and return when it is worth asking again.

        Raises:
            DomainError: KeyVault refused to hand out keys, or cannot be reached.
        """
        due, retry_after = await self._keys.claim_due(self._keys_max)
        await asyncio.gather(*(self._test(each) for each in due))
        return retry_after

    async def _test(self, due: DueKey) -> None:
        lease = due.lease
        request = KeyValidationRequest(
            request_id=new_uuid7(self._clock.now()),
            body_hash=hashlib.sha256(lease.lease_id.encode()).digest(),
            acting_for=_principal(due),
            key_id=lease.key_id,
            actor=TESTER,
        )
        deadline = self._clock.monotonic() + self._timeout.total_seconds()
        try:
            self._tell(due, await self._validate_key(request, deadline=deadline, due=due))
        except DomainError as error:
            self._tell(due, error)


def _principal(due: DueKey) -> Principal:
    owned_by = due.lease.owned_by
    if owned_by.kind is AccountKind.PLATFORM:
        return Principal(operator_id=TESTER)
    if owned_by.kind is AccountKind.ORGANIZATION:
        return Principal(owner_id=TESTER, organization_ids=(owned_by.id,))
    return Principal(owner_id=owned_by.id)

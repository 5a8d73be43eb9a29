"""ClaimKeysForValidation: hands keys that are due for a test call to a Router, each with a lease for it.

A claim is kept beside the keys and ends by itself. The lease is one like any other: AcquireLeases picks up authority,
halts and revocations, and writes it into the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.leases import LeaseItem, ValidationPurpose
from keyvault.domain.new_keys import refused
from keyvault.ports import Claim
from keyvault.usecases.acquire_leases import GrantedLease, LeaseCall, LeaseOutcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyvault.ports import Capabilities, KeyCheckStore
    from servicekit.clock import Clock

CLAIMS_DEFAULT: Final = 16
CLAIMS_MAX: Final = 64
_WINDOW: Final = timedelta(minutes=1)
_AT_ONCE: Final = timedelta(seconds=1)
_SOON: Final = timedelta(seconds=2)
_LATER: Final = timedelta(seconds=10)
_PUT_OFF: Final = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRates:
    """How many keys may be claimed within a minute, and how long a claim lasts that is not reported."""

    life: timedelta = timedelta(minutes=2)
    per_minute_max: int = 600
    per_provider_and_minute_max: int = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimCall:
    """What one Router process asks for."""

    caller: str
    holder: str
    recipient_hash: str
    claims_max: int
    providers: frozenset[str]


@dataclass(frozen=True, slots=True)
class ClaimedKeys:
    """The leases of what was claimed, and when it is worth asking again."""

    leases: list[GrantedLease]
    retry_after: timedelta


class ClaimKeyChecks:
    """Serves claims, of any number of Routers at once."""

    def __init__(
        self,
        *,
        checks: KeyCheckStore,
        acquire: Callable[[LeaseCall], Awaitable[list[LeaseOutcome]]],
        capabilities: Capabilities,
        clock: Clock,
        rates: ClaimRates,
    ) -> None:
        """Claim in `checks`, and lease by `acquire`."""
        self._checks = checks
        self._acquire = acquire
        self._capabilities = capabilities
        self._clock = clock
        self._rates = rates

    async def __call__(self, asked: ClaimCall) -> ClaimedKeys:
        """Return leases of keys that are due; a key that cannot be leased now is put off, and nobody is given it.

        Raises:
            InvalidArgumentError: more claims are asked for than one call may have.
            AuditUnavailableError: the leases are not known to be durable; the claims end by themselves.
            UnavailableError: the store is away.
        """
        if not 0 <= asked.claims_max <= CLAIMS_MAX:
            raise refused("claims_max", "COUNT_OUT_OF_RANGE", f"Send 1 to {CLAIMS_MAX}, or nothing for 16.")
        claims_max = asked.claims_max or CLAIMS_DEFAULT
        known = self._capabilities.providers()
        providers = [each for each in known if not asked.providers or each in asked.providers]
        key_ids = await self._claimed(asked, providers, claims_max)
        leases = await self._leased(asked, key_ids) if key_ids else []
        return ClaimedKeys(leases, await self._retry_after(providers, is_full=len(key_ids) == claims_max))

    async def _claimed(self, asked: ClaimCall, providers: list[str], claims_max: int) -> list[str]:
        return await self._checks.claim(
            Claim(
                providers=tuple(providers),
                claims_max=claims_max,
                holder=asked.holder,
                now=self._clock.now(),
                life=self._rates.life,
                window=_WINDOW,
                provider_max=self._rates.per_provider_and_minute_max,
                total_max=self._rates.per_minute_max,
            )
        )

    async def _leased(self, asked: ClaimCall, key_ids: list[str]) -> list[GrantedLease]:
        items = tuple(LeaseItem(ValidationPurpose(key_id, None)) for key_id in key_ids)
        outcomes = await self._acquire(LeaseCall(asked.caller, asked.holder, asked.recipient_hash, items))
        refused_ids = [
            key_id for key_id, outcome in zip(key_ids, outcomes, strict=True) if not isinstance(outcome, GrantedLease)
        ]
        if refused_ids:
            # Halted, corrupt, revoked since: whatever it is, it was said where it belongs, and does not pass at once.
            await self._checks.put_off(refused_ids, self._clock.now() + _PUT_OFF)
        return [outcome for outcome in outcomes if isinstance(outcome, GrantedLease)]

    async def _retry_after(self, providers: list[str], *, is_full: bool) -> timedelta:
        if is_full:
            return _AT_ONCE
        due = await self._checks.next_due_time(providers)
        return _LATER if due is None else min(max(due - self._clock.now(), _SOON), _LATER)

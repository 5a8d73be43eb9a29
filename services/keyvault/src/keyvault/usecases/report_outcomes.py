"""ReportOutcomes: moves key states and cool-downs by how provider calls went."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import EntryKind
from keyvault.domain.errors import KekNotPrimaryError, ProviderKeyNotFoundError, StaleAuthorityError
from keyvault.domain.key_states import (
    CallOutcome,
    CoolDowns,
    HealthRules,
    ModelsGone,
    after_cool_down,
    after_outcome,
    rest_after,
    state_details,
)
from keyvault.domain.lease_ids import ensure_granted
from keyvault.domain.ownership import Principal
from keyvault.domain.provider_keys import KeyState, Outcome, ProviderKey, StoredKey
from keyvault.usecases.change_provider_keys import Asker, key_entry
from servicekit.errors import DomainError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from keyvault.ports import KeyringSource, KeyRow, ProviderKeyStore
    from keyvault.usecases.verify_rows import VerifyRows
    from keyvault.usecases.write_authority import WriteKey
    from servicekit.clock import Clock

ATTEMPTS_MAX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedOutcome:
    """How one provider call went, on a lease that `holder` says it was granted."""

    holder: str
    lease_id: str
    provider_key_id: str
    key_version: int
    outcome: Outcome
    retry_after: timedelta | None
    age: timedelta


class ReportOutcomes:
    """Takes outcomes in batches; a repeated one changes nothing more."""

    def __init__(  # noqa: PLR0913 (its ports and rules; keyword-only)
        self,
        *,
        store: ProviderKeyStore,
        verify: VerifyRows,
        write: WriteKey,
        keyring: KeyringSource,
        clock: Clock,
        cool_downs: CoolDowns,
        rules: HealthRules,
    ) -> None:
        """Change keys in `store`."""
        self._store = store
        self._verify = verify
        self._write = write
        self._keyring = keyring
        self._clock = clock
        self._cool_downs = cool_downs
        self._rules = rules
        self._models_gone = ModelsGone()

    async def __call__(self, caller: str, outcomes: Sequence[ReportedOutcome]) -> list[KeyState | DomainError]:
        """Return, for each outcome in order, the key's state now, or why the outcome was not taken."""
        refused = [self._refusal(each) for each in outcomes]
        granted = [each for each, error in zip(outcomes, refused, strict=True) if error is None]
        states = iter(await self._settled(caller, granted) if granted else [])
        return [next(states) if error is None else error for error in refused]

    def _refusal(self, outcome: ReportedOutcome) -> DomainError | None:
        try:
            ensure_granted(
                self._keyring.current(),
                outcome.lease_id,
                holder=outcome.holder,
                provider_key_id=outcome.provider_key_id,
                key_version=outcome.key_version,
            )
        except DomainError as error:
            return error
        return None

    async def _settled(self, caller: str, outcomes: Sequence[ReportedOutcome]) -> list[KeyState | DomainError]:
        by_key: dict[str, list[ReportedOutcome]] = defaultdict(list)
        for each in outcomes:
            by_key[each.provider_key_id].append(each)
        rows = {row.found_by.provider_key_id: row for row in await self._store.get_many(list(by_key))}
        states: dict[str, KeyState | DomainError] = {}
        for key_id, of_key in by_key.items():
            try:
                states[key_id] = await self._settle(caller, key_id, rows.get(key_id), of_key)
            except DomainError as error:
                states[key_id] = error
        return [states[each.provider_key_id] for each in outcomes]

    async def _settle(
        self, caller: str, key_id: str, row: KeyRow | None, outcomes: Sequence[ReportedOutcome]
    ) -> KeyState:
        gone = [self._models_gone.count(key_id, each.key_version, each.outcome) for each in outcomes]
        for _ in range(ATTEMPTS_MAX):
            if row is None:
                raise ProviderKeyNotFoundError("there is no such provider key", provider_key_id=key_id)
            present = await self._verify.key(row)
            now = self._clock.now()
            key = self._folded(present.key, list(zip(outcomes, gone, strict=True)), now)
            if key == present.key or await self._written(caller, present, key, outcomes, now):
                return key.state
            row = await self._store.get(key_id)
        raise StaleAuthorityError("the provider key changed again and again; report again", provider_key_id=key_id)

    def _folded(self, key: ProviderKey, outcomes: Sequence[tuple[ReportedOutcome, int]], now: datetime) -> ProviderKey:
        for each, models_gone in outcomes:
            # A report on an earlier secret says nothing of the present one.
            if each.key_version == key.key_version:
                call = CallOutcome(outcome=each.outcome, at=now - each.age, models_gone=models_gone)
                key = after_outcome(key, call, now=now, rules=self._rules)
                rest = rest_after(
                    key, each.outcome, retry_after=each.retry_after, age=each.age, now=now, rules=self._cool_downs
                )
                key = after_cool_down(key, rest, now)
        return key

    async def _written(
        self,
        caller: str,
        present: StoredKey,
        key: ProviderKey,
        outcomes: Sequence[ReportedOutcome],
        now: datetime,
    ) -> bool:
        asker = Asker(caller=caller, actor="", acting_for=Principal())
        last = outcomes[-1]
        details = (("lease_id", last.lease_id), ("outcome", last.outcome.name), *state_details(present.key, key))
        entry = key_entry(EntryKind.KEY_STATE_CHANGED, key, asker=asker, now=now, details=details)
        try:
            written = await self._write(key, expected_index=present.seal.audit_index, entry=entry)
        except KekNotPrimaryError:
            await self._keyring.reload()
            return False
        return isinstance(written, StoredKey)

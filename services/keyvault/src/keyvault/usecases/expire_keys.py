"""Ends keys whose time has come, and says beforehand that it will."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import EntryKind
from keyvault.domain.errors import AuthorityForgedError, KekNotPrimaryError
from keyvault.domain.key_checks import CheckRules, due_notice
from keyvault.domain.key_states import after_expiry, state_details
from keyvault.domain.ownership import Principal
from keyvault.domain.provider_keys import KeyState, StoredKey
from keyvault.ports import NoticeEntry
from keyvault.usecases.change_provider_keys import Asker, key_entry

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from keyvault.ports import KeyCheckStore, KeyringSource, ProviderKeyStore
    from keyvault.usecases.report_corruption import ReportCorruption
    from keyvault.usecases.verify_rows import VerifyRows
    from keyvault.usecases.write_authority import WriteKey
    from servicekit.clock import Clock

DAYS_DETAIL: Final = "days"


class ExpireKeys:
    """Works off what is due, a batch at a time; of replicas that do so at once, one writes."""

    def __init__(  # noqa: PLR0913 (its ports and rules; keyword-only)
        self,
        *,
        checks: KeyCheckStore,
        store: ProviderKeyStore,
        verify: VerifyRows,
        write: WriteKey,
        keyring: KeyringSource,
        corruption: ReportCorruption,
        clock: Clock,
        rules: CheckRules,
        batch_max: int,
        worker: str,
    ) -> None:
        """Write entries as `worker`, the name of this service in the log."""
        self._checks = checks
        self._store = store
        self._verify = verify
        self._write = write
        self._keyring = keyring
        self._corruption = corruption
        self._clock = clock
        self._rules = rules
        self._batch_max = batch_max
        self._asker = Asker(caller=worker, actor="", acting_for=Principal())

    async def __call__(self) -> bool:
        """Expire keys and give notices; return whether there may be more.

        Raises:
            UnavailableError: the store is away.
            AuditUnavailableError: an entry is not known to be durable; what is due stays due.
        """
        now = self._clock.now()
        expired = await self._checks.find_expired(now, self._batch_max)
        overtaken = {
            stored.key.provider_key_id
            for stored in await self._believed(expired)
            if not await self._is_settled(stored, now)
        }
        settled = [key_id for key_id in expired if key_id not in overtaken]
        if settled:
            await self._checks.forget_expiry(settled, now)
        noticed = await self._checks.find_notices(now, self._batch_max)
        if noticed:
            await self._give_notices(noticed, await self._believed(noticed), now)
        return self._batch_max in (len(expired), len(noticed))

    async def _believed(self, provider_key_ids: Sequence[str]) -> list[StoredKey]:
        believed = []
        for row in await self._store.get_many(provider_key_ids) if provider_key_ids else ():
            try:
                believed.append(await self._verify.key(row))
            except AuthorityForgedError as error:
                await self._corruption(row.found_by.provider_key_id, error)
        return believed

    async def _is_settled(self, present: StoredKey, now: datetime) -> bool:
        key = after_expiry(present.key, now)
        if key is present.key:
            return True
        entry = key_entry(
            EntryKind.KEY_STATE_CHANGED,
            key,
            asker=self._asker,
            now=now,
            details=(("cause", "EXPIRED"), *state_details(present.key, key)),
        )
        try:
            written = await self._write(key, expected_index=present.seal.audit_index, entry=entry)
        except KekNotPrimaryError:
            await self._keyring.reload()
            return False
        return isinstance(written, StoredKey)

    async def _give_notices(self, noticed: Sequence[str], believed: Sequence[StoredKey], now: datetime) -> None:
        entries = [entry for stored in believed if (entry := self._notice(stored, now)) is not None]
        if entries:
            await self._checks.append_notices(entries)
        given = {each.entry.provider_key_id for each in entries}
        done = [key_id for key_id in noticed if key_id not in given]
        if done:
            await self._checks.forget_notices(done, now)

    def _notice(self, stored: StoredKey, now: datetime) -> NoticeEntry | None:
        key = stored.key
        if key.expire_time is None or key.state in (KeyState.EXPIRED, KeyState.REVOKED):
            return None
        notice = due_notice(key.expire_time, now, self._rules)
        if notice is None:
            return None
        details = (("expire_time", key.expire_time.isoformat()), (DAYS_DETAIL, f"{notice.threshold.days}"))
        entry = key_entry(EntryKind.KEY_EXPIRING, key, asker=self._asker, now=now, details=details)
        return NoticeEntry(key_index=stored.seal.audit_index, notice=notice, entry=entry)

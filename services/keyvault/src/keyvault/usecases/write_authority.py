"""Writes authority rows: seals each for the audit index that it will get, and retries when the log was faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyvault.domain.authority import AuthorityWindow, RowSeal, seal_window
from keyvault.domain.bindings import AgentBinding, StoredBinding, encode_binding
from keyvault.domain.errors import KekNotPrimaryError, StaleAuthorityError
from keyvault.domain.halts import HaltSet, StoredHalts, encode_halts
from keyvault.domain.provider_keys import ProviderKey, StoredKey, encode_key
from keyvault.domain.shares import KeyShare, StoredShare, encode_share
from keyvault.ports import (
    BindingChange,
    BindingStore,
    HaltsChange,
    HaltStore,
    KeyChange,
    KeyringSource,
    ProviderKeyStore,
    PutResult,
    SealedVersion,
    ShareChange,
    ShareStore,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyvault.domain.audit_log import AuditEntry
    from keyvault.domain.requests import RequestIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLimits:
    """How many audit indexes a row is sealed for at once: the first time, how much more each time, and how often."""

    length: int = 64
    growth: int = 8
    attempts_max: int = 4


class WriteKey:
    """Writes one authority row of a provider key."""

    def __init__(self, keys: ProviderKeyStore, keyring: KeyringSource, limits: WindowLimits) -> None:
        """Write to `keys`, sealed by `keyring`."""
        self._keys = keys
        self._keyring = keyring
        self._limits = limits

    async def __call__(
        self,
        key: ProviderKey,
        *,
        expected_index: int,
        entry: AuditEntry,
        secret: SealedVersion | None = None,
        request: RequestIdentity | None = None,
    ) -> StoredKey | PutResult:
        """Return the key as written, or the result REPLAYED or STALE when nothing was written.

        Raises:
            KekNotPrimaryError: a key that wrapped or signed is PRIMARY no more; reload the keyring and seal again.
            StaleAuthorityError: the log outran every window.
            AuditUnavailableError: it is not known to be durable.
        """
        record = encode_key(key)

        async def put(window: AuthorityWindow) -> PutResult:
            change = KeyChange(
                key=key,
                record=record,
                expected_index=expected_index,
                window=window,
                entry=entry,
                secret=secret,
                request=request,
            )
            return await self._keys.put(change)

        written = await _put_in_window(self._keys.head, self._keyring, record, put, self._limits)
        return StoredKey(key, written) if isinstance(written, RowSeal) else written


class WriteBinding:
    """Writes one authority row of a binding."""

    def __init__(self, bindings: BindingStore, keyring: KeyringSource, limits: WindowLimits) -> None:
        """Write to `bindings`, sealed by `keyring`."""
        self._bindings = bindings
        self._keyring = keyring
        self._limits = limits

    async def __call__(
        self, binding: AgentBinding, *, expected_index: int, entry: AuditEntry, request: RequestIdentity
    ) -> StoredBinding | PutResult:
        """Return the binding as written, or the result REPLAYED or STALE. Raises as `WriteKey` does."""
        record = encode_binding(binding)

        async def put(window: AuthorityWindow) -> PutResult:
            change = BindingChange(
                binding=binding,
                record=record,
                expected_index=expected_index,
                window=window,
                entry=entry,
                request=request,
            )
            return await self._bindings.put_binding(change)

        written = await _put_in_window(self._bindings.head, self._keyring, record, put, self._limits)
        return StoredBinding(binding, written) if isinstance(written, RowSeal) else written


class WriteShare:
    """Writes one authority row of a share."""

    def __init__(self, shares: ShareStore, keyring: KeyringSource, limits: WindowLimits) -> None:
        """Write to `shares`, sealed by `keyring`."""
        self._shares = shares
        self._keyring = keyring
        self._limits = limits

    async def __call__(
        self, share: KeyShare, *, expected_index: int, entry: AuditEntry, request: RequestIdentity
    ) -> StoredShare | PutResult:
        """Return the share as written, or the result REPLAYED or STALE. Raises as `WriteKey` does."""
        record = encode_share(share)

        async def put(window: AuthorityWindow) -> PutResult:
            change = ShareChange(
                share=share,
                record=record,
                expected_index=expected_index,
                window=window,
                entry=entry,
                request=request,
            )
            return await self._shares.put_share(change)

        written = await _put_in_window(self._shares.head, self._keyring, record, put, self._limits)
        return StoredShare(share, written) if isinstance(written, RowSeal) else written


class WriteHalts:
    """Writes the authority row of the set of halts."""

    def __init__(self, store: HaltStore, keyring: KeyringSource, limits: WindowLimits) -> None:
        """Write to `store`, sealed by `keyring`."""
        self._store = store
        self._keyring = keyring
        self._limits = limits

    async def __call__(
        self,
        halts: HaltSet,
        *,
        expected_index: int,
        entry: AuditEntry,
        resource_id: str = "",
        request: RequestIdentity | None = None,
    ) -> StoredHalts | PutResult:
        """Return the set as written, or the result REPLAYED or STALE. Raises as `WriteKey` does."""
        record = encode_halts(halts)

        async def put(window: AuthorityWindow) -> PutResult:
            change = HaltsChange(
                record=record,
                expected_index=expected_index,
                window=window,
                entry=entry,
                resource_id=resource_id,
                request=request,
            )
            return await self._store.put_halts(change)

        written = await _put_in_window(self._store.head, self._keyring, record, put, self._limits)
        return StoredHalts.of(halts, written) if isinstance(written, RowSeal) else written


async def _put_in_window(
    read_head: Callable[[], Awaitable[int]],
    keyring: KeyringSource,
    record: bytes,
    put: Callable[[AuthorityWindow], Awaitable[PutResult]],
    limits: WindowLimits,
) -> RowSeal | PutResult:
    head = await read_head()
    length = limits.length
    for _ in range(limits.attempts_max):
        window = seal_window(keyring.current(), record, first_index=head + 1, length=length)
        result = await put(window)
        if result.status == "WRITTEN":
            return _seal_at(window, result.audit_index)
        if result.status == "KEY_NOT_PRIMARY":
            raise KekNotPrimaryError("the key that sealed this was rotated meanwhile")
        if result.status != "WINDOW_MISSED":
            return result
        head = result.audit_index
        length *= limits.growth
    raise StaleAuthorityError("the audit log grew faster than a change could be sealed for it; retry")


def _seal_at(window: AuthorityWindow, audit_index: int) -> RowSeal:
    seal = window.seal_at(audit_index)
    if seal is None:
        raise StaleAuthorityError("the store wrote a row outside of its window")
    return seal

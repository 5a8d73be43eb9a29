"""Turns stored authority rows into what may be believed: authenticated, decoded, in agreement with their columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from keyvault.domain.authority import verify_row
from keyvault.domain.bindings import StoredBinding, decode_binding
from keyvault.domain.canonical import CanonicalFormError
from keyvault.domain.errors import AuthorityForgedError, KekVersionUnavailableError
from keyvault.domain.halts import ROW_ID as HALTS_ROW_ID
from keyvault.domain.halts import StoredHalts, decode_halts
from keyvault.domain.provider_keys import ProviderKey, StoredKey, decode_key
from keyvault.domain.shares import StoredShare, decode_share, share_name
from keyvault.ports import BindingRow, FoundBy, HaltsRow, KeyringSource, KeyRow, ShareRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyvault.domain.keyring import Keyring

Made = TypeVar("Made")

CACHED_ROWS_MAX: Final = 8192


class VerifyRows:
    """Verifies rows, and remembers what it verified: a row that is equal to the last byte is not verified again."""

    def __init__(self, keyring: KeyringSource, *, cached_rows_max: int = CACHED_ROWS_MAX) -> None:
        """Verify with the keys of `keyring`."""
        self._keyring = keyring
        self._cached_rows_max = cached_rows_max
        self._keys: dict[str, tuple[KeyRow, StoredKey]] = {}
        self._bindings: dict[str, tuple[BindingRow, StoredBinding]] = {}
        self._shares: dict[str, tuple[ShareRow, StoredShare]] = {}

    async def key(self, row: KeyRow) -> StoredKey:
        """Return the provider key in `row`.

        Raises:
            AuthorityForgedError: the row was not written by this service as it stands.
            KekVersionUnavailableError: the key that authenticates it is not available, also after a reload.
        """
        key_id = row.found_by.provider_key_id
        cached = self._keys.get(key_id)
        if cached is not None and cached[0] == row:
            return cached[1]
        stored = await reloading(self._keyring, lambda ring: _verified_key(ring, row))
        self._remember(self._keys, key_id, (row, stored))
        return stored

    async def share(self, row: ShareRow) -> StoredShare:
        """Return the share in `row`. Raises as `key` does."""
        name = share_name(row.provider_key_id, row.agent_id)
        cached = self._shares.get(name)
        if cached is not None and cached[0] == row:
            return cached[1]
        stored = await reloading(self._keyring, lambda ring: _verified_share(ring, row))
        self._remember(self._shares, name, (row, stored))
        return stored

    async def halts(self, row: HaltsRow) -> StoredHalts:
        """Return the set of halts in `row`. Raises as `key` does."""
        return await reloading(self._keyring, lambda ring: _verified_halts(ring, row))

    async def binding(self, row: BindingRow) -> StoredBinding:
        """Return the binding in `row`. Raises as `key` does."""
        cached = self._bindings.get(row.agent_id)
        if cached is not None and cached[0] == row:
            return cached[1]
        stored = await reloading(self._keyring, lambda ring: _verified_binding(ring, row))
        self._remember(self._bindings, row.agent_id, (row, stored))
        return stored

    def _remember(self, cache: dict[str, Made], name: str, made: Made) -> None:
        cache.pop(name, None)
        if len(cache) >= self._cached_rows_max:
            del cache[next(iter(cache))]
        cache[name] = made


async def reloading(source: KeyringSource, work: Callable[[Keyring], Made]) -> Made:
    """Return what `work` makes with the keyring; a version that it lacks reloads the keyring once before failing."""
    try:
        return work(source.current())
    except KekVersionUnavailableError:
        return work(await source.reload())


def found_by(key: ProviderKey) -> FoundBy:
    """Return the columns that a row of `key` is found by."""
    holder = key.holder
    return FoundBy(
        provider_key_id=key.provider_key_id,
        scope=int(holder.scope),
        owner_kind=int(holder.owned_by.kind),
        owner_id=holder.owned_by.party_id,
        agent_id=holder.agent_id,
        provider=key.provider,
        base_url=key.base_url,
        priority=key.priority,
        state=int(key.state),
        key_version=key.key_version,
    )


def _verified_key(ring: Keyring, row: KeyRow) -> StoredKey:
    key_id = row.found_by.provider_key_id
    verify_row(ring, row.record, seal=row.seal, row_id=key_id)
    try:
        key = decode_key(row.record)
    except CanonicalFormError as error:
        raise _forged(key_id, row.seal.audit_index) from error
    if found_by(key) != row.found_by:
        raise _forged(key_id, row.seal.audit_index)
    return StoredKey(key, row.seal)


def _verified_binding(ring: Keyring, row: BindingRow) -> StoredBinding:
    verify_row(ring, row.record, seal=row.seal, row_id=row.agent_id)
    try:
        binding = decode_binding(row.record)
    except CanonicalFormError as error:
        raise _forged(row.agent_id, row.seal.audit_index) from error
    if (binding.agent_id, binding.owner_id) != (row.agent_id, row.owner_id):
        raise _forged(row.agent_id, row.seal.audit_index)
    return StoredBinding(binding, row.seal)


def _verified_share(ring: Keyring, row: ShareRow) -> StoredShare:
    row_id = share_name(row.provider_key_id, row.agent_id)
    verify_row(ring, row.record, seal=row.seal, row_id=row_id)
    try:
        share = decode_share(row.record)
    except CanonicalFormError as error:
        raise _forged(row_id, row.seal.audit_index) from error
    columns = (row.provider_key_id, row.agent_id, row.is_ended)
    if (share.provider_key_id, share.agent_id, share.is_ended) != columns:
        raise _forged(row_id, row.seal.audit_index)
    return StoredShare(share, row.seal)


def _verified_halts(ring: Keyring, row: HaltsRow) -> StoredHalts:
    verify_row(ring, row.record, seal=row.seal, row_id=HALTS_ROW_ID)
    try:
        return StoredHalts.of(decode_halts(row.record), row.seal)
    except CanonicalFormError as error:
        raise _forged(HALTS_ROW_ID, row.seal.audit_index) from error


def _forged(row_id: str, audit_index: int) -> AuthorityForgedError:
    message = "the columns of an authority row disagree with its authenticated record"
    return AuthorityForgedError(message, row_id=row_id, audit_index=audit_index)

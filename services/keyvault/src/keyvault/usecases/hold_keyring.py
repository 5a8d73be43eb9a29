"""Holds the unwrapped keyring of this process: made on the first start, unlocked at each, read again on demand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from typing_extensions import override

from keyvault.domain.canonical import encode_fields
from keyvault.domain.errors import KeyringUnusableError, RootKeyUnusableError
from keyvault.domain.keyring import (
    KeyPurpose,
    Keyring,
    KeyState,
    draw_key,
    ensure_newest_is_primary,
    make_record,
    missing_purposes,
    record_associated_data,
    unlock,
)
from keyvault.ports import KeyringCustody, RewrappedRecord
from servicekit.errors import DomainError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyvault.domain.keyring import KeyringKey, KeyringRecord
    from keyvault.ports import KeyringStore, RootKey
    from servicekit.secrets import Secret

_PROOF: Final = encode_fields("byok/keyring/v1/root-key-proof", ())


async def wrap_key(deployment: str, key: KeyringKey, root: RootKey) -> KeyringRecord:
    """Return how `key` is stored, wrapped by `root`. Raises RootKeyUnavailableError, RootKeyUnusableError."""
    wrapped = await root.wrap(key.key, record_associated_data(deployment, key.purpose, key.version))
    return make_record(deployment, key, root_key_id=root.root_key_id, wrapped_key=wrapped)


async def wrap_new_keys(deployment: str, purposes: Iterable[KeyPurpose], root: RootKey) -> list[KeyringRecord]:
    """Return version 1 of every one of `purposes`, drawn at random, wrapped by `root`."""
    keys = [draw_key(purpose, version=1) for purpose in purposes]
    return await asyncio.gather(*(wrap_key(deployment, key, root) for key in keys))


async def unwrap_records(deployment: str, records: Iterable[KeyringRecord], roots: Iterable[RootKey]) -> Keyring:
    """Return the keyring in `records`, each unwrapped by the one of `roots` that wrapped it.

    Raises:
        RootKeyUnusableError: a record was wrapped by another root key, or for another deployment.
        RootKeyUnavailableError: where the root key lives cannot be reached in time, or refuses.
        KeyringUnusableError: a purpose has no primary version, or more than one.
    """
    held = held_records(records)
    return unlock(deployment, zip(held, await unwrap_keys(deployment, held, roots), strict=True))


def held_records(records: Iterable[KeyringRecord]) -> list[KeyringRecord]:
    """Return the records that are unwrapped: a DESTROYED version has no key left, and a DISABLED one no use.

    A DISABLED version may stay under a root key that is gone: that is what makes it destructible.
    """
    return [record for record in records if record.state not in {KeyState.DISABLED, KeyState.DESTROYED}]


async def unwrap_keys(deployment: str, records: Iterable[KeyringRecord], roots: Iterable[RootKey]) -> list[Secret]:
    """Return what each of `records` holds, all asked for at once. Raises as `unwrap_records` does."""
    by_id = {root.root_key_id: root for root in roots}
    asked = list(records)
    foreign = next((record.root_key_id for record in asked if record.root_key_id not in by_id), None)
    if foreign is not None:
        message = "the keyring was wrapped by another root key; mount that one"
        raise RootKeyUnusableError(message, root_key_id=foreign)
    return await asyncio.gather(
        *(
            by_id[record.root_key_id].unwrap(
                record.wrapped_key, record_associated_data(deployment, record.purpose, record.version)
            )
            for record in asked
        )
    )


class HoldKeyring(KeyringCustody):
    """The keyring source of a serving process."""

    def __init__(
        self, store: KeyringStore, *, root: RootKey, deployment: str, next_root: RootKey | None = None
    ) -> None:
        """Unlock what `store` keeps with `root`, or with `next_root` what is wrapped by that one already.

        Call `unlock` before anything else.
        """
        self._store = store
        self._root = root
        self._next_root = next_root
        self._deployment = deployment
        self._wrapping = root
        self._records: list[KeyringRecord] = []
        self._proved_roots: list[str] = []
        self._ring: Keyring | None = None
        # What was unwrapped before, so that a change of a state is in force while the root key is away.
        self._keys: dict[tuple[int, int, bytes], Secret] = {}
        self._reloading = asyncio.Lock()

    @property
    @override
    def root_key_id(self) -> str:
        return self._wrapping.root_key_id

    @property
    @override
    def next_root_key_id(self) -> str | None:
        other = self._root if self._wrapping is self._next_root else self._next_root
        # After the rotation the first one is the old one: nothing goes back to it.
        return None if other is None or other is self._root else other.root_key_id

    @override
    async def wrap_new(self, purpose: KeyPurpose, version: int) -> KeyringRecord:
        return await wrap_key(
            self._deployment, draw_key(purpose, version=version, state=KeyState.STAGED), self._wrapping
        )

    @override
    async def rewrapped(self, root_key_id: str) -> list[RewrappedRecord]:
        new = self._root_of(root_key_id)
        records = held_records(await self._store.load())
        pairs = await self._unwrap(records)
        return await asyncio.gather(*(self._rewrapped(record, key, new) for record, key in pairs))

    @override
    async def prove_roots(self) -> list[str]:
        roots = [root for root in (self._root, self._next_root) if root is not None]
        for root in roots:
            if root.root_key_id not in self._proved_roots and await self._is_usable(root):
                self._proved_roots.append(root.root_key_id)
        return list(self._proved_roots)

    @override
    async def refresh(self) -> Keyring:
        records = held_records(await self._store.load())
        return self.current() if records == self._records else await self.reload()

    async def unlock(self) -> Keyring:
        """Return the keyring; what this deployment lacks of it is made now.

        Raises:
            UnavailableError: the store is away.
            RootKeyUnavailableError: where the root key lives cannot be reached in time, or refuses.
            RootKeyUnusableError: the keyring was wrapped by another root key, or for another deployment.
            KeyringUnusableError: a purpose has no primary version, or the primary KEK does not open its canary.
        """
        missing = missing_purposes(await self._store.load())
        if missing:
            # Of two replicas that start at once, both load what the first one stored.
            await self._store.create(await wrap_new_keys(self._deployment, missing, self._root))
        return await self.reload()

    @override
    def current(self) -> Keyring:
        if self._ring is None:
            raise KeyringUnusableError("the keyring is not unlocked yet")
        return self._ring

    @override
    async def reload(self) -> Keyring:
        seen = self._ring
        async with self._reloading:
            if self._ring is not None and self._ring is not seen:
                # Somebody reloaded while this call waited: many leases that miss one version make one reload.
                return self._ring
            stored = await self._store.load()
            ensure_newest_is_primary(stored)
            records = held_records(stored)
            ring = unlock(self._deployment, await self._unwrap(records))
            ring.check_primary_kek()
            self._ring = ring
            self._records = records
            self._wrapping = self._root_of(_primary_kek(records).root_key_id)
        return ring

    def _root_of(self, root_key_id: str) -> RootKey:
        for root in (self._root, self._next_root):
            if root is not None and root.root_key_id == root_key_id:
                return root
        raise RootKeyUnusableError("this process holds no such root key", root_key_id=root_key_id)

    async def _rewrapped(self, record: KeyringRecord, key: Secret, root: RootKey) -> RewrappedRecord:
        associated_data = record_associated_data(self._deployment, record.purpose, record.version)
        wrapped = await root.wrap(key, associated_data)
        # Looked at before it takes the place of what works.
        if (await root.unwrap(wrapped, associated_data)).reveal() != key.reveal():
            raise RootKeyUnusableError("the root key does not give back what it wrapped", root_key_id=root.root_key_id)
        return RewrappedRecord(record, wrapped)

    async def _is_usable(self, root: RootKey) -> bool:
        probe = draw_key(KeyPurpose.KEK, version=0)
        try:
            wrapped = await root.wrap(probe.key, _PROOF)
            return (await root.unwrap(wrapped, _PROOF)).reveal() == probe.key.reveal()
        except DomainError:
            return False

    async def _unwrap(self, records: list[KeyringRecord]) -> list[tuple[KeyringRecord, Secret]]:
        roots = [root for root in (self._root, self._next_root) if root is not None]
        new = [record for record in records if _place(record) not in self._keys]
        fresh = await unwrap_keys(self._deployment, new, roots)
        known = self._keys | {_place(record): key for record, key in zip(new, fresh, strict=True)}
        self._keys = {_place(record): known[_place(record)] for record in records}
        return [(record, known[_place(record)]) for record in records]


def _primary_kek(records: Iterable[KeyringRecord]) -> KeyringRecord:
    return next(each for each in records if each.purpose is KeyPurpose.KEK and each.state is KeyState.PRIMARY)


def _place(record: KeyringRecord) -> tuple[int, int, bytes]:
    return (int(record.purpose), record.version, record.wrapped_key)

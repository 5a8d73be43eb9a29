"""Holds the unwrapped keyring of this process: made on the first start, unlocked at each, read again on demand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from typing_extensions import override

from keyvault.domain.errors import KeyringUnusableError, RootKeyUnusableError
from keyvault.domain.keyring import (
    Keyring,
    KeyState,
    draw_key,
    make_record,
    missing_purposes,
    record_associated_data,
    unlock,
)
from keyvault.ports import KeyringSource

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyvault.domain.keyring import KeyPurpose, KeyringKey, KeyringRecord
    from keyvault.ports import KeyringStore, RootKey
    from servicekit.secrets import Secret


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
    """Return the records that hold a key: a DESTROYED version has none left."""
    return [record for record in records if record.state is not KeyState.DESTROYED]


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


class HoldKeyring(KeyringSource):
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
        self._ring: Keyring | None = None
        # What was unwrapped before, so that a change of a state is in force while the root key is away.
        self._keys: dict[tuple[int, int, bytes], Secret] = {}
        self._reloading = asyncio.Lock()

    @property
    def root_key_id(self) -> str:
        """Return the id of the root key that wraps."""
        return self._root.root_key_id

    @property
    def next_root_key_id(self) -> str | None:
        """Return the id of the root key that a rotation goes to, if one is set."""
        return None if self._next_root is None else self._next_root.root_key_id

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
            ring = unlock(self._deployment, await self._unwrap(held_records(await self._store.load())))
            ring.check_primary_kek()
            self._ring = ring
        return ring

    async def _unwrap(self, records: list[KeyringRecord]) -> list[tuple[KeyringRecord, Secret]]:
        roots = [root for root in (self._root, self._next_root) if root is not None]
        new = [record for record in records if _place(record) not in self._keys]
        fresh = await unwrap_keys(self._deployment, new, roots)
        known = self._keys | {_place(record): key for record, key in zip(new, fresh, strict=True)}
        self._keys = {_place(record): known[_place(record)] for record in records}
        return [(record, known[_place(record)]) for record in records]


def _place(record: KeyringRecord) -> tuple[int, int, bytes]:
    return (int(record.purpose), record.version, record.wrapped_key)

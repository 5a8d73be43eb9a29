"""Holds the unwrapped keyring of this process: made on the first start, unlocked at each, read again on demand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from typing_extensions import override

from keyvault.domain.errors import KeyringUnusableError, RootKeyUnusableError
from keyvault.domain.keyring import Keyring, new_records, unlock
from keyvault.ports import KeyringSource

if TYPE_CHECKING:
    from keyvault.domain.keyring import KeyWrapper
    from keyvault.ports import KeyringStore, RootKey


class HoldKeyring(KeyringSource):
    """The keyring source of a serving process."""

    def __init__(self, store: KeyringStore, *, root: RootKey, deployment: str) -> None:
        """Unlock what `store` keeps with `root`; call `unlock` before anything else."""
        self._store = store
        self._root = root
        self._deployment = deployment
        self._ring: Keyring | None = None
        self._reloading = asyncio.Lock()

    async def unlock(self) -> Keyring:
        """Return the keyring, made now if this deployment has none yet.

        Raises:
            UnavailableError: the store is away.
            RootKeyUnusableError: the keyring was wrapped by another root key, or for another deployment.
            KeyringUnusableError: the primary KEK does not open its canary.
        """
        if not await self._store.load():
            records = new_records(self._deployment, root=self._root, root_key_id=self._root.root_key_id)
            await self._store.create(records)
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
            ring = unlock(self._deployment, await self._store.load(), self._root_for)
            ring.check_primary_kek()
            self._ring = ring
        return ring

    def _root_for(self, root_key_id: str) -> KeyWrapper:
        if root_key_id != self._root.root_key_id:
            message = "the keyring was wrapped by another root key; mount that one"
            raise RootKeyUnusableError(message, root_key_id=root_key_id)
        return self._root

"""ListKeyring: every version, the replicas, the backups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyvault.domain.keyring import KeyPurpose
from keyvault.domain.keyring_versions import Backup, KeyringVersion, Replica

if TYPE_CHECKING:
    from datetime import timedelta

    from keyvault.ports import KeyringAdministration, KeyringCustody

COUNTED = frozenset({KeyPurpose.KEK})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyringListing:
    """What there is. `rows` is None when rows were not counted."""

    versions: Sequence[KeyringVersion]
    replicas: list[Replica]
    backups: Sequence[Backup]
    rows: Mapping[tuple[KeyPurpose, int], int] | None
    root_key_id: str
    next_root_key_id: str


class ListKeyring:
    """Reads the keyring as an operator sees it."""

    def __init__(self, *, store: KeyringAdministration, custody: KeyringCustody, live: timedelta) -> None:
        """Read `store`."""
        self._store = store
        self._custody = custody
        self._live = live

    async def __call__(self, *, counts_rows: bool) -> KeyringListing:
        """Return everything. Raises UnavailableError."""
        await self._custody.refresh()
        return KeyringListing(
            versions=await self._store.versions(),
            replicas=await self._store.replicas(self._live),
            backups=await self._store.backups(),
            rows=await self._store.count_rows() if counts_rows else None,
            root_key_id=self._custody.root_key_id,
            next_root_key_id=self._custody.next_root_key_id or "",
        )

"""What an operator sees of the keyring: versions without their keys, replicas, backups. Pure."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.canonical import encode_fields
from keyvault.domain.errors import ConfirmationRequiredError
from keyvault.domain.keyring import KeyPurpose, KeyState

if TYPE_CHECKING:
    from keyvault.domain.keyring import Keyring

CONFIRMATION_LIFE: Final = timedelta(minutes=10)
_CONFIRMATION_LABEL: Final = "byok/keyring/v1/destroy-confirmation"
_CONFIRMATION_HEX_DIGITS: Final = 16
_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class KeyringVersion:
    """One version of one key, without the key."""

    purpose: KeyPurpose
    version: int
    state: KeyState
    root_key_id: str
    create_time: datetime
    update_time: datetime

    @property
    def tag(self) -> str:
        """Return how replicas name it when they say that they hold it."""
        return version_tag(self.purpose, self.version)


@dataclass(frozen=True, slots=True)
class Replica:
    """One serving process, as it last said."""

    replica_id: str
    release: str
    root_key_ids: tuple[str, ...]
    proved: frozenset[str]
    last_seen: datetime
    is_live: bool


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup of the database: the moment that it holds, and when its last copy is gone."""

    backup_id: str
    snapshot_time: datetime
    expire_time: datetime


def version_tag(purpose: KeyPurpose, version: int) -> str:
    """Return how replicas name a version."""
    return f"{int(purpose)}/{version}"


def proved_by(version: KeyringVersion, replicas: list[Replica]) -> list[str]:
    """Return the live replicas that have proved a version."""
    return [replica.replica_id for replica in replicas if replica.is_live and version.tag in replica.proved]


def not_ready(tag: str, replicas: list[Replica]) -> list[str]:
    """Return the live replicas that have not proved a version."""
    return [replica.replica_id for replica in replicas if replica.is_live and tag not in replica.proved]


def confirmation(ring: Keyring, version: KeyringVersion, now: datetime) -> str:
    """Return what an operator repeats to destroy `version`: good for ten minutes, for it under this root key."""
    return _confirmation_of(ring, version, _minute(now))


def ensure_confirmed(ring: Keyring, version: KeyringVersion, given: str, now: datetime) -> None:
    """Raise ConfirmationRequiredError unless `given` is a confirmation of the last ten minutes."""
    minutes = range(_minute(now - CONFIRMATION_LIFE), _minute(now) + 1)
    if not any(hmac.compare_digest(_confirmation_of(ring, version, each).encode(), given.encode()) for each in minutes):
        raise ConfirmationRequiredError(
            "a destroyed version never comes back, nor does what only it opens; repeat the call with this confirmation",
            confirmation=confirmation(ring, version, now),
        )


def _confirmation_of(ring: Keyring, version: KeyringVersion, minute: int) -> str:
    context = ring.mac(KeyPurpose.AUTHORITY_MAC, ring.primary(KeyPurpose.AUTHORITY_MAC).version)
    fields = (int(version.purpose), version.version, version.root_key_id, minute)
    context.update(encode_fields(_CONFIRMATION_LABEL, fields))
    return f"destroy-{version.purpose.name.lower()}-{version.version}-{context.hexdigest()[:_CONFIRMATION_HEX_DIGITS]}"


def _minute(time: datetime) -> int:
    return int(time.timestamp() // _MINUTE.total_seconds())

"""The keyring: every key that this service uses itself, wrapped by the root key, and the states of its versions.

States of one version::

    STAGED ──▶ PRIMARY ──▶ DECRYPT_ONLY ──▶ DISABLED ──▶ DESTROYED
                                  ▲            │
                                  └────────────┘

Only PRIMARY wraps or signs; PRIMARY and DECRYPT_ONLY unwrap or verify; a DISABLED version comes back as DECRYPT_ONLY;
from DESTROYED nothing comes back. A keyring in memory is a snapshot: a new version means a new `Keyring`.
"""

from __future__ import annotations

import enum
import hmac
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain import envelope
from keyvault.domain.canonical import encode_fields
from keyvault.domain.envelope import KEY_BYTES, Kek
from keyvault.domain.errors import (
    EnvelopeCorruptError,
    KekVersionUnavailableError,
    KeyringStateError,
    KeyringUnusableError,
)
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping


class KeyPurpose(enum.IntEnum):
    """What a key of the ring is for. The numbers are stored and authenticated: never renumber."""

    KEK = 1
    AUTHORITY_MAC = 2
    EQUALITY_MAC = 3
    SUBMISSION = 4
    CHECKPOINT = 5


class KeyState(enum.IntEnum):
    """Where one version of a key of the ring stands. The numbers are stored: never renumber."""

    STAGED = 1
    PRIMARY = 2
    DECRYPT_ONLY = 3
    DISABLED = 4
    DESTROYED = 5


_TRANSITIONS: Final = frozenset(
    {
        (KeyState.STAGED, KeyState.PRIMARY),
        (KeyState.PRIMARY, KeyState.DECRYPT_ONLY),
        (KeyState.DECRYPT_ONLY, KeyState.DISABLED),
        (KeyState.DISABLED, KeyState.DECRYPT_ONLY),
        (KeyState.DISABLED, KeyState.DESTROYED),
    }
)
_USABLE: Final = frozenset({KeyState.PRIMARY, KeyState.DECRYPT_ONLY})
# Purposes that came after the first release: a ring without one is of a database from before, and gets it at the start.
# A ring without any other purpose has lost it; a key made in its place would hide that, and open nothing.
_LATER_PURPOSES: Final = frozenset({KeyPurpose.CHECKPOINT})
_CANARY: Final = b"byok/keyring/v1/canary".ljust(KEY_BYTES, b".")


@dataclass(frozen=True, slots=True)
class KeyringRecord:
    """One version of one key as it is stored: wrapped, with a canary that proves that the key can be used."""

    purpose: KeyPurpose
    version: int
    state: KeyState
    root_key_id: str
    wrapped_key: bytes
    canary: bytes


@dataclass(frozen=True, slots=True)
class KeyringKey:
    """One version of one key, unwrapped, in memory only."""

    purpose: KeyPurpose
    version: int
    state: KeyState
    key: Secret


def ensure_transition(old: KeyState, new: KeyState) -> None:
    """Raise KeyringStateError unless a version may go from `old` to `new`."""
    if (old, new) not in _TRANSITIONS:
        message = "a key version cannot go from this state to that"
        raise KeyringStateError(message, old_state=old.name, new_state=new.name)


def record_associated_data(deployment: str, purpose: KeyPurpose, version: int) -> bytes:
    """Return what a stored key of the ring is bound to. Its state is not: it changes, and the row guards it."""
    return encode_fields("byok/keyring/v1/key", (deployment, int(purpose), version))


def missing_purposes(records: Collection[KeyringRecord]) -> list[KeyPurpose]:
    """Return the purposes that are to be made for a deployment with `records`: all, when it has no keyring yet."""
    present = {record.purpose for record in records}
    return [purpose for purpose in KeyPurpose if not present or (purpose in _LATER_PURPOSES and purpose not in present)]


def ensure_newest_is_primary(records: Iterable[KeyringRecord]) -> None:
    """Check that of each purpose no version that was in use is newer than the PRIMARY one.

    A promotion goes to a newer version only, so that an older one as PRIMARY says that a rotation was undone in the
    database, perhaps by somebody who has the old key.

    Raises:
        KeyringUnusableError: it is not so.
    """
    stored = list(records)
    for primary in (each for each in stored if each.state is KeyState.PRIMARY):
        newest = max(
            each.version for each in stored if each.purpose is primary.purpose and each.state is not KeyState.STAGED
        )
        if newest != primary.version:
            message = "the primary version is not the newest that was in use: a rotation was undone in the database"
            raise KeyringUnusableError(message, purpose=primary.purpose.name, version=primary.version)


def draw_key(purpose: KeyPurpose, *, version: int, state: KeyState = KeyState.PRIMARY) -> KeyringKey:
    """Return a version of `purpose`, drawn at random."""
    return KeyringKey(purpose=purpose, version=version, state=state, key=Secret(os.urandom(KEY_BYTES)))


def make_record(deployment: str, key: KeyringKey, *, root_key_id: str, wrapped_key: bytes) -> KeyringRecord:
    """Return how `key` is stored: as `wrapped_key`, bound to `record_associated_data`, beside a canary."""
    return KeyringRecord(
        purpose=key.purpose,
        version=key.version,
        state=key.state,
        root_key_id=root_key_id,
        wrapped_key=wrapped_key,
        canary=_make_canary(deployment, key),
    )


class Keyring:
    """The unwrapped keys of one deployment, by purpose and version."""

    def __init__(self, deployment: str, keys: Iterable[KeyringKey], canaries: Mapping[tuple[int, int], bytes]) -> None:
        """Hold `keys`; use `unlock` to make a keyring from stored records."""
        self._deployment = deployment
        self._keys: dict[KeyPurpose, dict[int, KeyringKey]] = {purpose: {} for purpose in KeyPurpose}
        for key in keys:
            self._keys[key.purpose][key.version] = key
        self._canaries = dict(canaries)
        # HMAC contexts keyed once: copying one costs a third of keying it anew, and leases verify two rows each.
        self._mac_contexts = {
            (purpose, version): hmac.new(key.key.reveal(), digestmod="sha256")
            for purpose in (KeyPurpose.AUTHORITY_MAC, KeyPurpose.EQUALITY_MAC)
            for version, key in self._keys[purpose].items()
            if key.state in _USABLE
        }

    @property
    def deployment(self) -> str:
        """Return the name that every envelope and every record of this ring is bound to."""
        return self._deployment

    def kek(self, version: int) -> Kek:
        """Return the KEK of this version for unwrapping.

        Raises:
            KekVersionUnavailableError: the version is unknown to this snapshot, or its state forbids unwrapping.
        """
        key = self._keys[KeyPurpose.KEK].get(version)
        if key is None or key.state not in _USABLE:
            message = "the key that wraps this secret is not available"
            raise KekVersionUnavailableError(message, kek_version=version)
        return Kek(version=key.version, key=key.key)

    def primary_kek(self) -> Kek:
        """Return the KEK that wraps. Whoever stores what it wrapped holds its row FOR SHARE and finds it PRIMARY."""
        key = self.primary(KeyPurpose.KEK)
        return Kek(version=key.version, key=key.key)

    def primary(self, purpose: KeyPurpose) -> KeyringKey:
        """Return the one PRIMARY version of `purpose`.

        Raises:
            KeyringUnusableError: there is none; the ring is damaged.
        """
        primaries = [key for key in self._keys[purpose].values() if key.state is KeyState.PRIMARY]
        if len(primaries) != 1:
            message = "the keyring must have exactly one primary version of each key"
            raise KeyringUnusableError(message, purpose=purpose.name)
        return primaries[0]

    def mac(self, purpose: KeyPurpose, version: int) -> hmac.HMAC:
        """Return a fresh HMAC-SHA-256 context keyed with this version.

        Raises:
            KekVersionUnavailableError: the version is unknown, or its state forbids verifying.
        """
        context = self._mac_contexts.get((purpose, version))
        if context is None:
            message = "the key that authenticates this record is not available"
            raise KekVersionUnavailableError(message, kek_version=version)
        return context.copy()

    def usable_versions(self, purpose: KeyPurpose) -> list[int]:
        """Return the versions of `purpose` that verify or unwrap, newest first."""
        versions = self._keys[purpose].items()
        return sorted((version for version, key in versions if key.state in _USABLE), reverse=True)

    def key(self, purpose: KeyPurpose, version: int) -> KeyringKey:
        """Return one usable version of `purpose`.

        Raises:
            KekVersionUnavailableError: the version is unknown, or its state forbids its use.
        """
        key = self._keys[purpose].get(version)
        if key is None or key.state not in _USABLE:
            message = "this version of the key is not available"
            raise KekVersionUnavailableError(message, kek_version=version)
        return key

    def probe_canaries(self) -> dict[tuple[KeyPurpose, int], bool]:
        """Return, for every usable version, whether its canary opens. PRIMARY KEK false means not ready."""
        return {
            (purpose, version): _canary_opens(self._deployment, key, self._canaries.get((int(purpose), version), b""))
            for purpose, versions in self._keys.items()
            for version, key in versions.items()
            if key.state in _USABLE
        }

    def proved(self) -> list[str]:
        """Return the versions that this process holds and whose canary opens, staged ones too, as `purpose/version`."""
        return [
            f"{int(purpose)}/{version}"
            for purpose, versions in self._keys.items()
            for version, key in versions.items()
            if _canary_opens(self._deployment, key, self._canaries.get((int(purpose), version), b""))
        ]

    def check_primary_kek(self) -> None:
        """Raise KeyringUnusableError unless the PRIMARY KEK unwraps its canary."""
        key = self.primary(KeyPurpose.KEK)
        if not _canary_opens(self._deployment, key, self._canaries.get((int(key.purpose), key.version), b"")):
            message = "the primary KEK does not unwrap its canary"
            raise KeyringUnusableError(message, kek_version=key.version)


def unlock(deployment: str, unwrapped: Iterable[tuple[KeyringRecord, Secret]]) -> Keyring:
    """Return the keyring of stored records and what each holds.

    DESTROYED versions have no key left, and DISABLED ones are not unwrapped: neither has a place here.

    Raises:
        KeyringUnusableError: a purpose has no primary version, or more than one.
    """
    pairs = list(unwrapped)
    ring = Keyring(
        deployment,
        [KeyringKey(purpose=each.purpose, version=each.version, state=each.state, key=key) for each, key in pairs],
        {(int(record.purpose), record.version): record.canary for record, _ in pairs},
    )
    for purpose in KeyPurpose:
        ring.primary(purpose)
    return ring


def _canary_associated_data(deployment: str, purpose: KeyPurpose, version: int) -> bytes:
    return encode_fields("byok/keyring/v1/canary", (deployment, int(purpose), version))


def _make_canary(deployment: str, key: KeyringKey) -> bytes:
    # A canary is a wrapped DEK like any other, so that it exercises the very code that leases depend on.
    return envelope.wrap_dek(
        Secret(_CANARY),
        associated_data=_canary_associated_data(deployment, key.purpose, key.version),
        kek=Kek(key.version, key.key),
    )


def _canary_opens(deployment: str, key: KeyringKey, canary: bytes) -> bool:
    associated_data = _canary_associated_data(deployment, key.purpose, key.version)
    try:
        dek = envelope.unwrap_dek(canary, associated_data=associated_data, kek=Kek(key.version, key.key))
    except EnvelopeCorruptError:
        return False
    return dek.reveal() == _CANARY

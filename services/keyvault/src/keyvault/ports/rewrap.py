"""Where a rewrap is asked for, and what the process that does it reads and writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from keyvault.domain.envelope import EnvelopeContext

if TYPE_CHECKING:
    from datetime import timedelta

    from keyvault.domain.audit_log import AuditEntry
    from keyvault.domain.rewrap import Rewrap

RewrapStatus = Literal["WRITTEN", "KEY_NOT_PRIMARY", "NOT_CLAIMED"]


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A wrapped DEK as it is stored; `context` is None when no present row of its key is of the same version."""

    provider_key_id: str
    key_version: int
    wrapped_dek: bytes
    kek_version: int
    context: EnvelopeContext | None


@dataclass(frozen=True, slots=True)
class RewrappedKey:
    """A DEK wrapped anew, and what it takes the place of."""

    old: WrappedKey
    wrapped_dek: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RewrapBatch:
    """What one batch came to, and where the next one begins."""

    kek_version: int
    rewrapped: Sequence[RewrappedKey]
    failed: int
    after: tuple[str, int]
    keys_per_second: float


class RewrapStore(Protocol):
    """The pass. Every method raises UnavailableError when the store is away."""

    async def ask(self, *, start: bool, keys_per_second_max: int, pause: bool | None) -> None:
        """Begin a pass unless one is under way; set its pace (0 leaves it) and its pause (None leaves it)."""
        ...

    async def read(self) -> Rewrap:
        """Return how the pass stands."""
        ...

    async def claim(self, worker: str, life: timedelta) -> Rewrap | None:
        """Take the pass up for `life`, or None when nothing is wanted or another process is at it.

        A pass towards a version that is PRIMARY no more begins anew.
        """
        ...

    async def walk(self, after: tuple[str, int], *, deployment: str, limit: int) -> list[WrappedKey]:
        """Return wrapped DEKs after this key and version, in their order, whatever wraps them."""
        ...

    async def write(self, worker: str, life: timedelta, batch: RewrapBatch) -> RewrapStatus:
        """Store a batch, each DEK only if it is still what was unwrapped, and how far the pass has come."""
        ...

    async def complete(self, worker: str, kek_version: int, entry: AuditEntry) -> int | None:
        """End the pass with its entry, when no secret is under another version.

        Return the index of the entry; 0 when secrets are left, and the pass begins again; None when it is not this
        worker's. Raises AuditUnavailableError when it is not known to be durable.
        """
        ...

"""An audit log as KeyVault keeps one, in memory, that can also be rolled back, forked and signed wrongly.

`AuditLogOnTheWire` speaks the real AuditService. Importable by tests as `services.metering.tests.custody`.
"""

from typing import Any

import grpc
from typing_extensions import override

from byok.keyvault.v1 import audit_service_pb2, audit_service_pb2_grpc
from metering.domain.custody import Contradiction, ListedCheckpoint, LogPage, corrupt_log
from metering.domain.errors import DependencyUnavailableError
from metering.ports import CustodyLog
from servicekit.errors import DomainError
from servicekit.wire import ErrorTable, WireError
from transparency.checkpoints import Checkpoint, CheckpointSigner
from transparency.merkle import leaf_hash, root_of
from transparency.notes import joined_notes
from transparency.paths import consistency_path

ORIGIN = "byok.keyvault/test"


def signer(number: int = 1, *, origin: str = ORIGIN) -> CheckpointSigner:
    """Return a key that signs checkpoints; each number is another key."""
    return CheckpointSigner(origin, bytes([number]) * 32)


class AuditLog:
    """Leaves, the keys that sign, and what is wrong with it."""

    def __init__(self, size: int = 0, *, keys: tuple[CheckpointSigner, ...] = (signer(),)) -> None:
        """Start with some leaves."""
        self.keys = keys
        self.hashes: list[bytes] = []
        self.is_down = False
        # Where it can no longer be signed over, and which entry cannot be told; 0 for nowhere.
        self.corrupt_at = 0
        self.spoiled_entry = 0
        self.reads = 0
        self.asked = 0
        self.grow(size)

    @property
    def size(self) -> int:
        """Return how many leaves there are."""
        return len(self.hashes)

    @property
    def verifier_keys(self) -> tuple[str, ...]:
        """Return what KeyVault lists."""
        return tuple(key.verifier_key for key in self.keys)

    def grow(self, count: int, *, words: str = "entry") -> None:
        """Append leaves; other words make another history."""
        self.hashes += [leaf_hash(f"{words} {self.size + number}".encode()) for number in range(count)]

    def restore(self, size: int) -> None:
        """Go back to an old copy."""
        del self.hashes[size:]

    def fork(self, size: int, *, to: int) -> None:
        """Go back to an old copy, and live another history since then."""
        self.restore(size)
        self.grow(to - size, words="another entry")

    def checkpoint(self) -> str:
        """Return the newest checkpoint, with the signatures of all keys."""
        notes = []
        for key in self.keys:
            origin = key.verifier_key.partition("+")[0]
            notes.append(key.sign(Checkpoint(origin, self.size, root_of(self.hashes))))
        return joined_notes(notes)

    def corruption(self, witnessed_size: int, after_index: int) -> int:
        """Return where ReadFeed finds the log corrupt, and 0 if it does not."""
        if witnessed_size > self.size:
            return 0
        return self.corrupt_at or (self.spoiled_entry if after_index < self.spoiled_entry else 0)

    def page(self, witnessed_size: int) -> LogPage:
        """Return what ReadFeed answers."""
        self.reads += 1
        is_behind = witnessed_size > self.size
        path = [] if is_behind or not witnessed_size else consistency_path(witnessed_size, self.size)
        return LogPage(
            checkpoint=self.checkpoint(),
            consistency_proof=tuple(root_of(self.hashes[span.start : span.end]) for span in path),
            is_behind=is_behind,
            next_after_index=self.size,
        )


class MemoryCustodyLog(CustodyLog):
    """The port on a log in memory."""

    def __init__(self, log: AuditLog) -> None:
        """Read a log."""
        self.log = log

    @override
    async def read(self, *, witnessed_size: int, after_index: int) -> LogPage | Contradiction:
        self._ensure_up()
        corrupt = self.log.corruption(witnessed_size, after_index)
        return corrupt_log("a leaf was edited", at=corrupt) if corrupt else self.log.page(witnessed_size)

    @override
    async def newest(self) -> ListedCheckpoint:
        self._ensure_up()
        return ListedCheckpoint(self.log.checkpoint(), self.log.verifier_keys)

    def _ensure_up(self) -> None:
        if self.log.is_down:
            raise DependencyUnavailableError("KeyVault is away.", dependency="keyvault")


class AuditLogCorruptError(DomainError):
    """KeyVault's own finding."""


# How KeyVault tells what it raises here.
ERRORS = ErrorTable(
    "byok.keyvault",
    {AuditLogCorruptError: WireError(grpc.StatusCode.DATA_LOSS, "AUDIT_LOG_CORRUPT", ("audit_index",))},
)


class AuditLogOnTheWire(audit_service_pb2_grpc.AuditServiceServicer):
    """What of AuditService the witness calls."""

    def __init__(self, log: AuditLog) -> None:
        """Serve a log."""
        self.log = log

    @override
    async def ReadFeed(self, request: audit_service_pb2.ReadFeedRequest, context: Any) -> Any:
        await self._ensure_up(context)
        corrupt = self.log.corruption(request.witnessed_size, request.after_index)
        if corrupt:
            raise AuditLogCorruptError("a leaf was edited", audit_index=corrupt)
        page = self.log.page(request.witnessed_size)
        return audit_service_pb2.ReadFeedResponse(
            next_after_index=page.next_after_index,
            checkpoint=page.checkpoint,
            consistency_proof=page.consistency_proof,
            is_behind_witness=page.is_behind,
        )

    @override
    async def GetCheckpoint(self, request: audit_service_pb2.GetCheckpointRequest, context: Any) -> Any:
        await self._ensure_up(context)
        return audit_service_pb2.GetCheckpointResponse(
            checkpoint=self.log.checkpoint(), verifier_keys=self.log.verifier_keys
        )

    async def _ensure_up(self, context: Any) -> None:
        self.log.asked += 1
        if self.log.is_down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")

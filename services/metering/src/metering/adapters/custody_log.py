"""KeyVault's audit log, over gRPC."""

from datetime import timedelta
from typing import Final

import grpc
from typing_extensions import override

from byok.keyvault.v1 import audit_service_pb2, audit_service_pb2_grpc
from metering.domain.custody import Contradiction, ListedCheckpoint, LogPage, corrupt_log
from metering.domain.errors import DependencyUnavailableError
from metering.ports import CustodyLog
from servicekit.calls import call_deadline
from servicekit.wire import error_from_rpc

# The witness needs the checkpoint and the proof only; the entries are passed over, so that the feed's place moves on.
_PAGE_SIZE: Final = 100
# Every audit index has fewer; what is longer would not fit into its column.
_INDEX_DIGITS: Final = 19
_AWAY: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
_AWAY_RETRY: Final = timedelta(milliseconds=200)
_REFUSED_RETRY: Final = timedelta(seconds=10)


class KeyVaultCustodyLog(CustodyLog):
    """Calls AuditService. It asks often and never lets KeyVault wait: a poll that hangs would witness nothing."""

    def __init__(self, channel: grpc.aio.Channel, *, deadline_max: timedelta) -> None:
        """Call over a channel."""
        self._stub = audit_service_pb2_grpc.AuditServiceStub(channel)
        self._deadline_max = deadline_max

    @override
    async def read(self, *, witnessed_size: int, after_index: int) -> LogPage | Contradiction:
        request = audit_service_pb2.ReadFeedRequest(
            after_index=after_index, page_size=_PAGE_SIZE, witnessed_size=witnessed_size, no_wait=True
        )
        try:
            page = await self._stub.ReadFeed(request, timeout=call_deadline(self._deadline_max))
        except grpc.aio.AioRpcError as error:
            remote = error_from_rpc(error)
            if remote.reason == "AUDIT_LOG_CORRUPT":
                return corrupt_log(remote.message, at=_index(remote.metadata.get("auditIndex", "")))
            raise _unreadable(remote.code, remote.reason) from error
        return LogPage(
            checkpoint=page.checkpoint,
            consistency_proof=tuple(page.consistency_proof),
            is_behind=page.is_behind_witness,
            next_after_index=page.next_after_index,
        )

    @override
    async def newest(self) -> ListedCheckpoint:
        request = audit_service_pb2.GetCheckpointRequest()
        try:
            answer = await self._stub.GetCheckpoint(request, timeout=call_deadline(self._deadline_max))
        except grpc.aio.AioRpcError as error:
            remote = error_from_rpc(error)
            raise _unreadable(remote.code, remote.reason) from error
        return ListedCheckpoint(answer.checkpoint, tuple(answer.verifier_keys))


def _index(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < _INDEX_DIGITS else 0


def _unreadable(code: grpc.StatusCode, reason: str) -> DependencyUnavailableError:
    error = DependencyUnavailableError(
        f"KeyVault's audit log cannot be read ({reason or code.name}); retry soon.", dependency="keyvault"
    )
    # One that is away is asked again at once: its first answer counts. One that refuses would write down every refusal.
    error.retry_after = _AWAY_RETRY if code in _AWAY else _REFUSED_RETRY
    return error

"""ExposureService: what a breach exposed, for operators."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from byok.keyvault.v1 import exposure_service_pb2, exposure_service_pb2_grpc
from keyvault.api.key_mapping import key_to
from keyvault.domain.exposure import Interval
from keyvault.domain.new_keys import check_text, refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc
    from google.protobuf.timestamp_pb2 import Timestamp

    from keyvault.usecases.list_exposed_keys import Exposed, ListExposedKeys

    Context = grpc.aio.ServicerContext[Any, Any]

CALLER_CHARACTERS_MAX = 256


class ExposureServicer(exposure_service_pb2_grpc.ExposureServiceServicer):
    """Takes calls, asks the use case, answers."""

    def __init__(self, list_exposed_keys: ListExposedKeys) -> None:
        """Serve the search."""
        self._list = list_exposed_keys

    @override
    async def ListExposedKeys(
        self, request: exposure_service_pb2.ListExposedKeysRequest, context: Context
    ) -> AsyncIterator[exposure_service_pb2.ListExposedKeysResponse]:
        start = _time_from(request.HasField("start_time"), request.start_time, "start_time")
        end = _time_from(request.HasField("end_time"), request.end_time, "end_time")
        caller = check_text("caller", request.caller, characters_max=CALLER_CHARACTERS_MAX)
        async for page in self._list(Interval(start, end), caller=caller):
            yield exposure_service_pb2.ListExposedKeysResponse(
                keys=[_exposed_to(each) for each in page.keys], scanned_entries=page.scanned_entries
            )


def _time_from(is_set: bool, message: Timestamp, field: str) -> datetime:  # noqa: FBT001 (says whether the field is there)
    if not is_set:
        raise refused(field, "REQUIRED", "Send a time.")
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise refused(field, "OUT_OF_RANGE", "Send a time between the years 1 and 9999.") from None


def _exposed_to(exposed: Exposed) -> exposure_service_pb2.ExposedKey:
    message = exposure_service_pb2.ExposedKey(
        key=key_to(exposed.stored),
        remedy=int(exposed.remedy),  # type: ignore[arg-type]  # the numbers are the contract's own
    )
    if exposed.leases is not None:
        message.leases = exposed.leases.count
        message.first_lease_time.FromDatetime(exposed.leases.first)
        message.last_lease_time.FromDatetime(exposed.leases.last)
    return message

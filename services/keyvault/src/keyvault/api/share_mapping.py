"""Shares, from protobuf to what the use cases take, and back. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from byok.keyvault.v1 import provider_key_pb2
from keyvault.api.fields import actor_from, enum_from, principal_from
from keyvault.api.key_mapping import timestamp_to
from keyvault.domain.new_keys import refused
from keyvault.domain.ownership import check_identifier
from keyvault.domain.provider_keys import Operation
from keyvault.domain.shares import NO_CAP, ShareCap
from keyvault.usecases.change_provider_keys import Asker
from keyvault.usecases.change_shares import NewShare, ShareEnd
from keyvault.usecases.list_shares import ShareListing

if TYPE_CHECKING:
    from byok.keyvault.v1 import key_service_pb2
    from keyvault.domain.shares import StoredShare
    from servicekit.identity import Caller

OPERATIONS_MAX: Final = 16


def share_from(request: key_service_pb2.ShareKeyRequest, caller: Caller) -> NewShare:
    """Return what ShareKey asks for."""
    if len(request.operations) > OPERATIONS_MAX:
        raise refused("operations", "TOO_MANY", f"Send at most {OPERATIONS_MAX} operations.")
    return NewShare(
        request_id=request.request_id,
        asker=_asker_from(request, caller),
        provider_key_id=check_identifier("key_id", request.key_id),
        agent_id=request.agent_id,
        operations=tuple(enum_from(Operation, each, "operations") for each in request.operations),
        cap=_cap_from(request.cap) if request.HasField("cap") else NO_CAP,
    )


def share_end_from(request: key_service_pb2.UnshareKeyRequest, caller: Caller) -> ShareEnd:
    """Return what UnshareKey asks for."""
    return ShareEnd(
        request_id=request.request_id,
        asker=_asker_from(request, caller),
        provider_key_id=check_identifier("key_id", request.key_id),
        agent_id=request.agent_id,
    )


def share_listing_from(request: key_service_pb2.ListSharesRequest, caller: Caller) -> ShareListing:
    """Return what ListShares asks for."""
    return ShareListing(
        acting_for=principal_from(request.acting_for, caller),
        provider_key_id=check_identifier("key_id", request.key_id),
        agent_id=request.agent_id,
        page_size=request.page_size,
        page_token=request.page_token,
    )


def share_to(stored: StoredShare) -> provider_key_pb2.KeyShare:
    """Return a share as a message."""
    share = stored.share
    return provider_key_pb2.KeyShare(
        key_id=share.provider_key_id,
        agent_id=share.agent_id,
        organization_id=share.organization_id,
        operations=[int(operation) for operation in share.operations],  # type: ignore[misc]  # the contract's own numbers
        cap=None if share.cap == NO_CAP else _cap_to(share.cap),
        terms_index=stored.terms_index,
        create_time=timestamp_to(share.create_time),
    )


def _asker_from(request: key_service_pb2.ShareKeyRequest | key_service_pb2.UnshareKeyRequest, caller: Caller) -> Asker:
    return Asker(
        caller=caller.uri, actor=actor_from(request.actor), acting_for=principal_from(request.acting_for, caller)
    )


def _cap_from(cap: provider_key_pb2.ShareCap) -> ShareCap:
    return ShareCap(
        month_cost_nano_usd=cap.month_cost_nano_usd, day_cost_nano_usd=cap.day_cost_nano_usd, day_calls=cap.day_calls
    )


def _cap_to(cap: ShareCap) -> provider_key_pb2.ShareCap:
    return provider_key_pb2.ShareCap(
        month_cost_nano_usd=cap.month_cost_nano_usd, day_cost_nano_usd=cap.day_cost_nano_usd, day_calls=cap.day_calls
    )

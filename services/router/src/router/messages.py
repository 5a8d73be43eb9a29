"""The protobuf forms of what both sides of the Router speak of: accounts, payers, operations, usage.

Its servicers answer with them and its clients send them; the meaning is the domain's. Enums without a counterpart (a
newer peer's) become the unspecified value, which every reader treats as the cautious case.
"""

from __future__ import annotations

import functools
from typing import Final

from byok.type.v1 import account_pb2, operation_pb2, usage_pb2
from byok.type.v1.embedding_space_pb2 import EmbeddingSpace as EmbeddingSpaceMessage
from catalogue.models import EmbeddingSpace, Operation
from router.domain.leases import Account, AccountKind, Payer
from router.domain.operations import Principal, Subject
from router.domain.receipts import CostSource, PricedModel, PricedUsage, UnitPrices, UsageSource
from router.domain.usage import TokenCounts

# Embedding a message copies it, which is far cheaper than to build it anew with every call.
_ACCOUNTS_KEPT_MAX: Final = 16_384
_PRICES_KEPT_MAX: Final = 4_096

OPERATIONS: Final = {each: operation_pb2.Operation.Value(f"OPERATION_{each.name}") for each in Operation}
PAYERS: Final = {each: account_pb2.Payer.Value(f"PAYER_{each.name}") for each in Payer}
_PAYERS_BACK: Final[dict[int, Payer]] = {value: each for each, value in PAYERS.items()}
_USAGE_SOURCES: Final = {each: usage_pb2.UsageSource.Value(f"USAGE_SOURCE_{each.name}") for each in UsageSource}
_USAGE_SOURCES_BACK: Final = {value: each for each, value in _USAGE_SOURCES.items()}
_COST_SOURCES: Final = {each: usage_pb2.CostSource.Value(f"COST_SOURCE_{each.name}") for each in CostSource}
_COST_SOURCES_BACK: Final = {value: each for each, value in _COST_SOURCES.items()}


@functools.lru_cache(maxsize=_ACCOUNTS_KEPT_MAX)
def account_message(account: Account) -> account_pb2.Account:
    """Return the account as a message, to be embedded in another one: it is shared, and must not be changed."""
    if account.kind is AccountKind.OWNER:
        return account_pb2.Account(owner_id=account.id)
    if account.kind is AccountKind.ORGANIZATION:
        return account_pb2.Account(organization_id=account.id)
    return account_pb2.Account(platform=True)


def account_of(message: account_pb2.Account) -> Account:
    """Return the account that a message names.

    Raises:
        ValueError: It names none.
    """
    kind = message.WhichOneof("kind")
    if kind == "owner_id":
        return Account(AccountKind.OWNER, message.owner_id)
    if kind == "organization_id":
        return Account(AccountKind.ORGANIZATION, message.organization_id)
    if kind == "platform":
        return Account(AccountKind.PLATFORM)
    error = "the account names nobody"
    raise ValueError(error)


def payer_of(value: int) -> Payer | None:
    """Return the payer of an enum's value, if it is one we know."""
    return _PAYERS_BACK.get(value)


def subject_message(subject: Subject) -> account_pb2.Subject:
    """Return the subject as a message."""
    return account_pb2.Subject(type=subject.type, id=subject.id)


def principal_message(principal: Principal) -> account_pb2.Principal:
    """Return the principal as a message."""
    message = account_pb2.Principal(organization_ids=principal.organization_ids)
    if principal.operator_id:
        message.operator_id = principal.operator_id
    else:
        message.owner_id = principal.owner_id
    return message


def principal_of(message: account_pb2.Principal) -> Principal:
    """Return the principal of a message, as it stands: parsing it is the domain's."""
    return Principal(
        owner_id=message.owner_id,
        operator_id=message.operator_id,
        organization_ids=tuple(message.organization_ids),
    )


def space_message(space: EmbeddingSpace) -> EmbeddingSpaceMessage:
    """Return the embedding space as a message."""
    return EmbeddingSpaceMessage(maker=space.maker, model=space.model, dimensions=space.dimensions)


def counts_message(counts: TokenCounts) -> usage_pb2.TokenCounts:
    """Return token counts as a message."""
    return usage_pb2.TokenCounts(
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        cached_input_tokens=counts.cache_read_tokens,
        cache_write_5m_input_tokens=counts.cache_write_5m_tokens,
        cache_write_1h_input_tokens=counts.cache_write_1h_tokens,
        audio_input_tokens=counts.input_audio_tokens,
        tool_use_input_tokens=counts.tool_use_tokens,
        reasoning_output_tokens=counts.reasoning_tokens,
        audio_output_tokens=counts.output_audio_tokens,
    )


def counts_of(message: usage_pb2.TokenCounts) -> TokenCounts:
    """Return the token counts of a message."""
    return TokenCounts(
        input_tokens=message.input_tokens,
        output_tokens=message.output_tokens,
        cache_read_tokens=message.cached_input_tokens,
        cache_write_5m_tokens=message.cache_write_5m_input_tokens,
        cache_write_1h_tokens=message.cache_write_1h_input_tokens,
        input_audio_tokens=message.audio_input_tokens,
        tool_use_tokens=message.tool_use_input_tokens,
        reasoning_tokens=message.reasoning_output_tokens,
        output_audio_tokens=message.audio_output_tokens,
    )


def usage_message(usage: PricedUsage) -> usage_pb2.Usage:
    """Return a priced usage as a message."""
    return usage_pb2.Usage(
        models=[_model_message(model) for model in usage.models],
        source=_USAGE_SOURCES[usage.source],
        is_clamped=usage.is_clamped,
        cost_nano_usd=usage.cost_nano_usd,
        cost_source=_COST_SOURCES[usage.cost_source],
        price_version=usage.price_version,
    )


def usage_of(message: usage_pb2.Usage) -> PricedUsage:
    """Return the priced usage of a message."""
    return PricedUsage(
        models=tuple(_model_of(model) for model in message.models),
        source=_USAGE_SOURCES_BACK.get(message.source, UsageSource.ESTIMATED),
        is_clamped=message.is_clamped,
        cost_nano_usd=message.cost_nano_usd,
        cost_source=_COST_SOURCES_BACK.get(message.cost_source, CostSource.CATALOGUE),
        price_version=message.price_version,
    )


def _model_message(model: PricedModel) -> usage_pb2.ModelUsage:
    billable = counts_message(model.billable)
    return usage_pb2.ModelUsage(
        provider=model.provider,
        model=model.model,
        tier=model.tier,
        processed=billable if model.processed is model.billable else counts_message(model.processed),
        billable=billable,
        cost_nano_usd=model.cost_nano_usd,
        prices=None if model.prices is None else _prices_message(model.prices),
    )


def _model_of(message: usage_pb2.ModelUsage) -> PricedModel:
    return PricedModel(
        provider=message.provider,
        model=message.model,
        tier=message.tier,
        processed=counts_of(message.processed),
        billable=counts_of(message.billable),
        cost_nano_usd=message.cost_nano_usd,
        prices=_prices_of(message.prices) if message.HasField("prices") else None,
    )


@functools.lru_cache(maxsize=_PRICES_KEPT_MAX)
def _prices_message(prices: UnitPrices) -> usage_pb2.UnitPrices:
    return usage_pb2.UnitPrices(
        input_nano_usd_per_mtok=prices.input_nano_usd_per_mtok,
        output_nano_usd_per_mtok=prices.output_nano_usd_per_mtok,
        cached_input_nano_usd_per_mtok=prices.cached_input_nano_usd_per_mtok,
        cache_write_5m_nano_usd_per_mtok=prices.cache_write_5m_nano_usd_per_mtok,
        cache_write_1h_nano_usd_per_mtok=prices.cache_write_1h_nano_usd_per_mtok,
    )


def _prices_of(message: usage_pb2.UnitPrices) -> UnitPrices:
    return UnitPrices(
        input_nano_usd_per_mtok=message.input_nano_usd_per_mtok,
        output_nano_usd_per_mtok=message.output_nano_usd_per_mtok,
        cached_input_nano_usd_per_mtok=message.cached_input_nano_usd_per_mtok,
        cache_write_5m_nano_usd_per_mtok=message.cache_write_5m_nano_usd_per_mtok,
        cache_write_1h_nano_usd_per_mtok=message.cache_write_1h_nano_usd_per_mtok,
    )

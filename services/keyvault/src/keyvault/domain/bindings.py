"""The binding of an agent to its owner and account: who may use whose key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from keyvault.domain.authority import RowSeal
from keyvault.domain.canonical import CanonicalFormError, FieldReader, encode_fields
from keyvault.domain.errors import AgentAlreadyBoundError
from keyvault.domain.ownership import Account, AccountKind

RECORD_LABEL: Final = "byok/authority/v1/agent-binding"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBinding:
    """Which owner an agent has and which account it belongs to."""

    agent_id: str
    owner_id: str
    account: Account
    binding_version: int


@dataclass(frozen=True, slots=True)
class StoredBinding:
    """A binding with the seal that authenticates it."""

    binding: AgentBinding
    seal: RowSeal


def rebind(
    current: AgentBinding | None, *, agent_id: str, owner_id: str, account: Account, expected: Account | None
) -> AgentBinding:
    """Return the binding that is to be in force; it is `current` itself when nothing changes.

    Raises:
        AgentAlreadyBoundError: the agent is bound elsewhere than the caller expects.
    """
    if current is None:
        if expected is not None:
            message = "the agent is not bound yet; leave expected_account unset"
            raise AgentAlreadyBoundError(message, agent_id=agent_id)
        return AgentBinding(agent_id=agent_id, owner_id=owner_id, account=account, binding_version=1)
    if (current.owner_id, current.account) == (owner_id, account):
        return current
    if current.account != expected:
        message = "the agent is bound to another account; name that account in expected_account to move the agent"
        raise AgentAlreadyBoundError(message, agent_id=agent_id)
    return AgentBinding(
        agent_id=agent_id, owner_id=owner_id, account=account, binding_version=current.binding_version + 1
    )


def encode_binding(binding: AgentBinding) -> bytes:
    """Return the canonical record of `binding`: what its authority HMAC covers, and what is stored."""
    return encode_fields(
        RECORD_LABEL,
        (
            binding.agent_id,
            binding.owner_id,
            int(binding.account.kind),
            binding.account.party_id,
            binding.binding_version,
        ),
    )


def decode_binding(record: bytes) -> AgentBinding:
    """Return the binding in a canonical record.

    Raises:
        CanonicalFormError: these bytes are not such a record.
    """
    read = FieldReader(RECORD_LABEL, record)
    try:
        binding = AgentBinding(
            agent_id=read.text(),
            owner_id=read.text(),
            account=Account(AccountKind(read.number()), read.text()),
            binding_version=read.number(),
        )
    except ValueError as error:
        message = "the record is not that of a binding"
        raise CanonicalFormError(message) from error
    read.end()
    return binding

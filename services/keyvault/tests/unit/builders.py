"""Values of the domain for tests: usual ones, of which a test changes what it is about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from keyvault.adapters.root_keys.file import FileRootKey
from keyvault.domain.authority import RowSeal
from keyvault.domain.bindings import AgentBinding, StoredBinding
from keyvault.domain.keyring import KeyPurpose, Keyring, draw_key, make_record, unlock
from keyvault.domain.leaf_seals import LeafSealer
from keyvault.domain.ownership import Account, AccountKind, Holder, Scope
from keyvault.domain.provider_keys import Custody, KeyState, ProviderKey, StoredKey
from servicekit.secrets import Secret

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
SECRET = b"sk-ant-api03-canary-0123456789abcdefghijklmnop"
ROOT = FileRootKey(Secret(bytes(range(32))))


def owner_holder(owner_id: str = "owner-1") -> Holder:
    """Return the holder of a key of all agents of an owner."""
    return Holder(Scope.OWNER, Account(AccountKind.OWNER, owner_id))


def agent_holder(agent_id: str = "agent-1", owner_id: str = "owner-1") -> Holder:
    """Return the holder of a key of one agent."""
    return Holder(Scope.AGENT, Account(AccountKind.OWNER, owner_id), agent_id)


def provider_key(**changes: Any) -> ProviderKey:
    """Return an active key of an owner."""
    usual: dict[str, Any] = {
        "provider_key_id": "0192f0c1-2f00-7000-8000-000000000001",
        "holder": owner_holder(),
        "provider": "anthropic",
        "base_url": "https://api.anthropic.com",
        "label": "mine",
        "priority": 100,
        "mapping": (),
        "custody": Custody.CACHED,
        "state": KeyState.ACTIVE,
        "state_reason": "",
        "cool_down_until": None,
        "key_version": 1,
        "fingerprint": "0123456789abcdef",
        "secret_suffix": "mnop",
        "validated_models": (),
        "validated_operations": (),
        "create_time": NOW,
        "update_time": NOW,
        "validate_time": None,
    }
    return ProviderKey(**(usual | changes))


def stored_key(audit_index: int = 1, **changes: Any) -> StoredKey:
    """Return a key as if it were stored."""
    return StoredKey(provider_key(**changes), RowSeal(audit_index, 1, bytes(32)))


def stored_binding(agent_id: str = "agent-1", owner_id: str = "owner-1", audit_index: int = 1) -> StoredBinding:
    """Return a binding as if it were stored."""
    account = Account(AccountKind.OWNER, owner_id)
    binding = AgentBinding(agent_id=agent_id, owner_id=owner_id, account=account, binding_version=1)
    return StoredBinding(binding, RowSeal(audit_index, 1, bytes(32)))


def leaf_sealer() -> LeafSealer:
    """Return what seals leaves with a fresh keyring."""
    ring = keyring()
    return LeafSealer(lambda: ring)


def keyring(deployment: str = "test") -> Keyring:
    """Return a fresh keyring."""
    keys = [draw_key(purpose, version=1) for purpose in KeyPurpose]
    return unlock(
        deployment, [(make_record(deployment, key, root_key_id="test", wrapped_key=b""), key.key) for key in keys]
    )

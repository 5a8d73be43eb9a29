"""What an attacker who owns the database does to rows, and the switches that take one control away at a time.

A control is switched off inside the service, so that a test shows that its attack would work without it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from keyvault.adapters.postgres.authority import key_row
from keyvault.domain import envelope
from keyvault.domain.ownership import PLATFORM, Holder, Scope, owner_account
from keyvault.domain.provider_keys import (
    Custody,
    KeyState,
    Operation,
    OperationRoute,
    ProviderKey,
    decode_key,
    encode_key,
)
from keyvault.usecases import verify_rows
from keyvault.usecases.verify_rows import found_by
from servicekit.wire import remote_error

if TYPE_CHECKING:
    import pytest

    from byok.keyvault.v1 import lease_pb2
    from services.keyvault.tests.integration.vault import Vault


class _EqualToAll:
    @override
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # it stands for any value


def without_row_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believe every authority row, whatever its HMAC is."""
    monkeypatch.setattr(verify_rows, "verify_row", lambda *_, **__: None)


def without_column_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the columns of a key's row say something else than its record."""
    monkeypatch.setattr(verify_rows, "found_by", lambda _: _EqualToAll())


def without_associated_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bind envelopes to nothing; to be switched before anything is sealed."""
    monkeypatch.setattr(envelope.EnvelopeContext, "canonical", lambda _: b"")


async def read_key(vault: Vault, key_id: str) -> ProviderKey:
    """Return a key from its present row, unverified."""
    rows = await vault.sql(
        "SELECT * FROM agent_ai_keys WHERE provider_key_id = $1 AND superseded_index IS NULL", key_id
    )
    return decode_key(key_row(rows[0]).record)


async def rewrite_key(vault: Vault, key_id: str, change: Callable[[ProviderKey], ProviderKey]) -> None:
    """Write a changed record over the present row of a key, its columns in agreement; its HMAC stays the old one."""
    changed = change(await read_key(vault, key_id))
    columns = found_by(changed)
    names = [name for name in type(columns).__slots__ if name != "provider_key_id"]
    sets = ", ".join(f"{name} = ${position}" for position, name in enumerate(names, start=3))
    await vault.forge(
        f"UPDATE agent_ai_keys SET record = $2, {sets} WHERE provider_key_id = $1 AND superseded_index IS NULL",
        key_id,
        encode_key(changed),
        *(getattr(columns, name) for name in names),
    )
    # The secret goes with the version that the row names.
    await vault.forge(
        "UPDATE agent_ai_key_secrets SET key_version = $2 WHERE provider_key_id = $1", key_id, changed.key_version
    )


@dataclass(frozen=True)
class Edit:
    """One change of a victim's key of scope AGENT, and who profits from it.

    `is_bound` says that the envelope is bound to what is changed, so that it is a second line of defence.
    """

    change: Callable[[ProviderKey], ProviderKey]
    is_bound: bool
    profits: str = "agent-1"
    """`agent-1` of the victim; `agent-2`, another agent of the same owner; `agent-3` of another one; `platform`."""


def held_by(scope: Scope, owner_id: str, agent_id: str = "") -> Callable[[ProviderKey], ProviderKey]:
    """Return the change of a key's holder."""
    return lambda key: replace(key, holder=Holder(scope, owner_account(owner_id), agent_id))


def with_fields(**fields: Any) -> Callable[[ProviderKey], ProviderKey]:
    """Return a change of fields."""
    return lambda key: replace(key, **fields)


DEAR_ROUTE = OperationRoute(operation=Operation.GUARDRAIL_EVALUATION, model="claude-opus-4-5")
EDITS = {
    "another owner": Edit(held_by(Scope.OWNER, "owner-3"), is_bound=True, profits="agent-3"),
    "another scope": Edit(held_by(Scope.OWNER, "owner-1"), is_bound=True, profits="agent-2"),
    "another agent": Edit(held_by(Scope.AGENT, "owner-1", "agent-2"), is_bound=True, profits="agent-2"),
    "the platform's": Edit(
        lambda key: replace(key, holder=Holder(Scope.PLATFORM, PLATFORM)), is_bound=True, profits="platform"
    ),
    "another provider": Edit(with_fields(provider="openai"), is_bound=True),
    "another base URL's host": Edit(with_fields(base_url="https://evil.example.com"), is_bound=True),
    "another base URL's path": Edit(with_fields(base_url="https://api.anthropic.com/evil"), is_bound=True),
    "another version": Edit(with_fields(key_version=7), is_bound=True),
    "an invalid key made active": Edit(with_fields(state=KeyState.ACTIVE), is_bound=False),
    "another priority": Edit(with_fields(priority=0), is_bound=False),
    "another mapping": Edit(with_fields(mapping=(DEAR_ROUTE,)), is_bound=False),
    "another custody": Edit(with_fields(custody=Custody.STRICT), is_bound=False),
}


async def came_of(vault: Vault, item: lease_pb2.LeaseItem) -> str:
    """Ask for a lease; return the secret that came, or else the reason why none did."""
    router = await vault.router()
    response = await router.acquire(item)
    result = response.results[0]
    if result.WhichOneof("result") == "error":
        return remote_error(result.error).reason
    if result.WhichOneof("result") == "no_usable_key":
        return "NO_USABLE_KEY"
    with suppress(IndexError):
        return router.open(response)[0].secret.decode()
    return "NOT SEALED"

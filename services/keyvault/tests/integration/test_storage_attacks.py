"""Somebody edits the database: every edit of an authority row, a secret or the keyring is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import grpc
import pytest
import pytest_asyncio

from byok.keyvault.v1 import key_service_pb2, lease_pb2
from keyvault.domain.audit_log import EntryKind, decode_leaf
from servicekit.errors import DomainError
from servicekit.wire import remote_error
from services.keyvault.tests.integration.vault import (
    SECRET,
    Vault,
    agent_item,
    name,
    new_id,
    owner,
    refusal,
    revoke_request,
    validation_item,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


pytestmark = pytest.mark.asyncio(loop_scope="session")

# Edits of the row of a key. PRESENT stands for the condition of its present row; `$1` is the key's id and `$3` its
# owner, `$2` and `$4` are another owner's.
KEY_EDITS = {
    "another owner": "UPDATE agent_ai_keys SET owner_id = $4 WHERE PRESENT",
    "another owner in the record": (
        "UPDATE agent_ai_keys SET owner_id = $4, record = decode(replace(encode(record, 'hex'), "
        "encode(convert_to($3, 'UTF8'), 'hex'), encode(convert_to($4, 'UTF8'), 'hex')), 'hex') WHERE PRESENT"
    ),
    "another base URL": "UPDATE agent_ai_keys SET base_url = 'https://evil.example.com' WHERE PRESENT",
    "another base URL in the record": (
        "UPDATE agent_ai_keys SET base_url = 'https://api.anthropic.net', record = decode(replace(encode(record, "
        "'hex'), encode('anthropic.com', 'hex'), encode('anthropic.net', 'hex')), 'hex') WHERE PRESENT"
    ),
    "another version": "UPDATE agent_ai_keys SET key_version = 2 WHERE PRESENT",
    "another provider": "UPDATE agent_ai_keys SET provider = 'openai' WHERE PRESENT",
    "another priority": "UPDATE agent_ai_keys SET priority = 0 WHERE PRESENT",
    "another index": "UPDATE agent_ai_keys SET audit_index = audit_index + 1000 WHERE PRESENT",
    "another HMAC": "UPDATE agent_ai_keys SET mac = sha256(mac) WHERE PRESENT",
    "a cut record": "UPDATE agent_ai_keys SET record = substr(record, 1, 50) WHERE PRESENT",
    "another key's row": (
        "UPDATE agent_ai_keys k SET record = o.record, mac = o.mac FROM agent_ai_keys o "
        "WHERE k.provider_key_id = $1 AND k.superseded_index IS NULL AND o.provider_key_id = $2 "
        "AND o.superseded_index IS NULL"
    ),
}

# Edits of what is sealed.
SECRET_EDITS = {
    "another key's secret": (
        "UPDATE agent_ai_key_secrets k SET sealed_secret = o.sealed_secret FROM agent_ai_key_secrets o "
        "WHERE k.provider_key_id = $1 AND o.provider_key_id = $2"
    ),
    "another key's DEK": (
        "UPDATE agent_ai_key_secrets k SET wrapped_dek = o.wrapped_dek FROM agent_ai_key_secrets o "
        "WHERE k.provider_key_id = $1 AND o.provider_key_id = $2"
    ),
    "another key's secret and DEK": (
        "UPDATE agent_ai_key_secrets k SET sealed_secret = o.sealed_secret, wrapped_dek = o.wrapped_dek "
        "FROM agent_ai_key_secrets o WHERE k.provider_key_id = $1 AND o.provider_key_id = $2"
    ),
    "a flipped bit": (
        "UPDATE agent_ai_key_secrets SET sealed_secret = set_bit(sealed_secret, 800, 1 - get_bit(sealed_secret, 800)) "
        "WHERE provider_key_id = $1"
    ),
    "a cut secret": (
        "UPDATE agent_ai_key_secrets SET sealed_secret = substr(sealed_secret, 1, 90) WHERE provider_key_id = $1"
    ),
}


@dataclass(frozen=True)
class Victims:
    """Two owners, each with an agent and a working key."""

    vault: Vault
    owners: tuple[str, str]
    agents: tuple[str, str]
    keys: tuple[str, str]

    async def forge(self, edit: str) -> None:
        """Apply an edit with those of the arguments that it names."""
        edit = edit.replace("PRESENT", "provider_key_id = $1 AND superseded_index IS NULL")
        arguments = {"$1": self.keys[0], "$2": self.keys[1], "$3": self.owners[0], "$4": self.owners[1]}
        used = [value for parameter, value in arguments.items() if parameter in edit]
        for position, parameter in enumerate([each for each in arguments if each in edit], start=1):
            edit = edit.replace(parameter, f"${position}")
        await self.vault.forge(edit, *used)

    def items(self) -> list[lease_pb2.LeaseItem]:
        """Return an item for each agent."""
        return [agent_item(agent_id) for agent_id in self.agents]


async def victims_of(vault: Vault) -> Victims:
    """Return two new owners whose keys work."""
    owners, agents, keys = [], [], []
    for number in (1, 2):
        owners.append(name("owner"))
        agents.append(name("agent"))
        await vault.bind(agents[-1], owners[-1])
        secret = SECRET + str(number).encode()
        keys.append((await vault.working_key(acting_for=owner(owners[-1]), plaintext=secret)).key_id)
    return Victims(vault, (owners[0], owners[1]), (agents[0], agents[1]), (keys[0], keys[1]))


@pytest_asyncio.fixture(loop_scope="session")
async def victims(shared_vault: Vault) -> Victims:
    """Return two new owners at the shared KeyVault."""
    return await victims_of(shared_vault)


async def corruption_of(vault: Vault, row_id: str) -> list[str]:
    """Return the errors that the log tells of a row."""
    rows = await vault.sql("SELECT leaf FROM audit_entries WHERE kind = $1", int(EntryKind.CORRUPTION_FOUND))
    entries = [dict(decode_leaf(row["leaf"]).details) for row in rows]
    return [entry["error"] for entry in entries if entry["row_id"] == row_id]


@pytest.mark.parametrize("edit", KEY_EDITS.values(), ids=KEY_EDITS)
async def test_an_edited_key_row_is_refused(victims: Victims, edit: str) -> None:
    """Nothing is leased on it, to either owner; it is read by nobody; the log and the metrics say so."""
    vault, (mine, theirs) = victims.vault, victims.keys
    router = await vault.router()
    before = router.open(await router.acquire(victims.items()[0]))
    assert before[0].secret == SECRET + b"1"
    await victims.forge(edit)
    response = await router.acquire(*victims.items(), validation_item(mine, victims.owners[0]))
    reasons = [remote_error(result.error).reason for result in response.results if result.HasField("error")]
    assert "AUTHORITY_CORRUPT" in reasons
    assert response.results[2].WhichOneof("result") == "error"
    for result in response.results:
        assert not result.HasField("lease") or result.lease.key_id == theirs
    request = key_service_pb2.GetKeyRequest(acting_for=owner(victims.owners[0]), key_id=mine)
    error = await refusal((await vault.keys()).GetKey(request))
    assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, "AUTHORITY_CORRUPT")
    assert await corruption_of(vault, mine) == ["AuthorityForgedError"]
    alarms = vault.metrics.registry.get_sample_value(
        "keyvault_corruption_found_total", {"error": "AuthorityForgedError"}
    )
    assert alarms


@pytest.mark.parametrize("edit", SECRET_EDITS.values(), ids=SECRET_EDITS)
async def test_an_edited_secret_does_not_open(victims: Victims, edit: str) -> None:
    """A ciphertext in another row, or changed, is refused by name, once in the log however often it is asked for."""
    router = await victims.vault.router()
    await victims.forge(edit)
    for _ in range(2):
        response = await router.acquire(*victims.items())
        error = remote_error(response.results[0].error)
        assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, "ENVELOPE_CORRUPT")
        assert error.metadata == {"providerKeyId": victims.keys[0]}
        assert [lease.secret for lease in router.open(response)] == [SECRET + b"2"]
    assert await corruption_of(victims.vault, victims.keys[0]) == ["EnvelopeCorruptError"]


async def test_an_edited_binding_is_refused(victims: Victims) -> None:
    """An agent moved in the database to another owner leases nothing of either."""
    router = await victims.vault.router()
    agents = victims.agents
    for edit, arguments in (
        ("UPDATE agent_bindings SET owner_id = $2 WHERE agent_id = $1", (agents[0], victims.owners[1])),
        (
            (
                "UPDATE agent_bindings a SET record = b.record, mac = b.mac FROM agent_bindings b "
                "WHERE a.agent_id = $1 AND b.agent_id = $2"
            ),
            agents,
        ),
        (
            (
                "INSERT INTO agent_bindings SELECT $1 || '-made-up', audit_index, NULL, owner_id, record, "
                "mac_key_version, mac FROM agent_bindings WHERE agent_id = $2"
            ),
            agents,
        ),
    ):
        await victims.vault.forge(edit, *arguments)
        agent_id = agents[0] + ("-made-up" if edit.startswith("INSERT") else "")
        response = await router.acquire(agent_item(agent_id))
        assert remote_error(response.results[0].error).reason == "AUTHORITY_CORRUPT"


async def test_a_copy_of_a_key_row_is_refused(victims: Victims) -> None:
    """A key under an id that was never written is no authority."""
    await victims.vault.forge(
        "INSERT INTO agent_ai_keys SELECT $2, audit_index, NULL, scope, owner_kind, owner_id, agent_id, provider, "
        "base_url, priority, state, key_version, record, mac_key_version, mac "
        "FROM agent_ai_keys WHERE provider_key_id = $1 AND superseded_index IS NULL",
        victims.keys[0],
        new_id(),
    )
    response = await (await victims.vault.router()).acquire(victims.items()[0])
    assert remote_error(response.results[0].error).reason == "AUTHORITY_CORRUPT"


async def test_a_revoked_key_that_is_made_active_again_is_refused(victims: Victims) -> None:
    """The state is authenticated, and the secret is gone."""
    mine = victims.keys[0]
    keys, router = await victims.vault.keys(), await victims.vault.router()
    await keys.RevokeKey(revoke_request(mine, acting_for=owner(victims.owners[0])))
    await victims.forge("UPDATE agent_ai_keys SET state = 2 WHERE PRESENT")
    response = await router.acquire(victims.items()[0])
    assert remote_error(response.results[0].error).reason == "AUTHORITY_CORRUPT"
    assert not await victims.vault.sql("SELECT 1 FROM agent_ai_key_secrets WHERE provider_key_id = $1", mine)


async def test_an_older_row_put_back_opens_no_replaced_secret(victims: Victims) -> None:
    """A replayed row is valid in itself; the secret of its version is not there any more."""
    keys, router = await victims.vault.keys(), await victims.vault.router()
    await keys.ReplaceKeySecret(
        key_service_pb2.ReplaceKeySecretRequest(
            request_id=new_id(),
            acting_for=owner(victims.owners[0]),
            actor="test",
            key_id=victims.keys[0],
            plaintext=SECRET + b"3",
        )
    )
    await victims.forge("DELETE FROM agent_ai_keys WHERE provider_key_id = $1 AND key_version = 2")
    await victims.forge(
        "UPDATE agent_ai_keys SET superseded_index = NULL WHERE provider_key_id = $1 AND audit_index = "
        "(SELECT max(audit_index) FROM agent_ai_keys WHERE provider_key_id = $1)"
    )
    response = await router.acquire(victims.items()[0])
    assert not response.sealed_leases


APPEND_ONLY = [
    "UPDATE audit_entries SET leaf = leaf",
    "DELETE FROM audit_entries",
    "TRUNCATE audit_entries",
    "UPDATE audit_head SET last_index = 0",
    "DELETE FROM audit_head",
    "TRUNCATE audit_head",
    "UPDATE agent_ai_keys SET priority = 0",
    "UPDATE agent_ai_keys SET superseded_index = 1000000, priority = 0",
    "DELETE FROM agent_ai_keys",
    "TRUNCATE agent_ai_keys",
    "UPDATE agent_bindings SET owner_id = 'x'",
    "DELETE FROM agent_bindings",
    "TRUNCATE agent_bindings",
    "UPDATE key_shares SET is_ended = false",
    "DELETE FROM key_shares",
    "TRUNCATE key_shares",
    "UPDATE halt_sets SET record = ''",
    "DELETE FROM halt_sets",
    "TRUNCATE halt_sets",
]


@pytest.mark.parametrize("edit", APPEND_ONLY)
async def test_the_database_refuses_what_is_append_only(victims: Victims, edit: str) -> None:
    """As far as one role can bind itself: an accident, and an injection, change no row."""
    await victims.vault.shared_key(name("agent"), name("org"))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await victims.vault.sql(edit)


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE keyring_keys SET canary = (SELECT canary FROM keyring_keys WHERE purpose = 2) WHERE purpose = 1",
        (
            "UPDATE keyring_keys SET wrapped_key = (SELECT wrapped_key FROM keyring_keys WHERE purpose = 2) "
            "WHERE purpose = 1"
        ),
    ],
)
@pytest.mark.asyncio(loop_scope="function")
async def test_a_keyring_that_was_tampered_with_does_not_start(
    start_vault: Callable[..., Awaitable[Vault]], edit: str
) -> None:
    """Neither a changed key nor a changed canary of the primary KEK serves."""
    vault = await start_vault()
    await vault.forge(edit)
    with pytest.raises(DomainError, match=r"canary|root key"):
        await start_vault()

"""Bad input to KeyService and LeaseService: each a typed error that names the field and the remedy."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc.error_details_pb2 import BadRequest

from byok.keyvault.v1 import key_service_pb2, lease_pb2, lease_service_pb2, provider_key_pb2
from byok.type.v1 import account_pb2, operation_pb2
from servicekit.clock import SystemClock
from servicekit.ids import new_uuid7
from services.keyvault.tests.integration.vault import (
    SECRET,
    agent_item,
    create_request,
    name,
    new_id,
    owner,
    refusal,
    revoke_request,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from services.keyvault.tests.integration.vault import Vault

pytestmark = pytest.mark.asyncio(loop_scope="session")

ROUTE = provider_key_pb2.OperationRoute
CHAT = operation_pb2.OPERATION_CHAT
EMBEDDING = operation_pb2.OPERATION_EMBEDDING_GENERATION


def old_id(age: timedelta) -> str:
    """Return a request id of another time."""
    return new_uuid7(SystemClock().now() - age)


CREATE: dict[str, tuple[dict[str, Any], str, str]] = {
    "no secret": ({"plaintext": b""}, "plaintext", "SECRET_EMPTY"),
    "a secret of white space": ({"plaintext": b" \n "}, "plaintext", "SECRET_EMPTY"),
    "an oversized secret": ({"plaintext": b"x" * 4097}, "plaintext", "SECRET_TOO_LONG"),
    "a secret that is not UTF-8": ({"plaintext": b"sk-\xff\xfe"}, "plaintext", "SECRET_NOT_TEXT"),
    "a secret with a line break inside": ({"plaintext": b"sk-a\nsk-b"}, "plaintext", "SECRET_HAS_BAD_CHARACTERS"),
    "another vendor's key": (
        {"plaintext": b"gsk_" + b"a" * 52},
        "plaintext",
        "SECRET_OF_ANOTHER_VENDOR",
    ),
    "no request id": ({"request_id": ""}, "request_id", "REQUEST_ID_MALFORMED"),
    "a request id in capitals": ({"request_id": new_id().upper()}, "request_id", "REQUEST_ID_MALFORMED"),
    "an old request id": ({"request_id": old_id(timedelta(days=36))}, "request_id", "REQUEST_ID_TOO_OLD"),
    "a request id of the future": (
        {"request_id": old_id(timedelta(hours=-6))},
        "request_id",
        "REQUEST_ID_IN_FUTURE",
    ),
    "nobody to act for": ({"acting_for": account_pb2.Principal()}, "acting_for", "REQUIRED"),
    "an owner without an id": (
        {"acting_for": account_pb2.Principal(owner_id="")},
        "acting_for.owner_id",
        "IDENTIFIER_INVALID",
    ),
    "an owner id with a space": ({"acting_for": owner("a b")}, "acting_for.owner_id", "IDENTIFIER_INVALID"),
    "an overlong owner id": ({"acting_for": owner("x" * 129)}, "acting_for.owner_id", "IDENTIFIER_INVALID"),
    "an owner id with a control character": (
        {"acting_for": owner("a\x00b")},
        "acting_for.owner_id",
        "IDENTIFIER_INVALID",
    ),
    "no actor": ({"actor": " "}, "actor", "REQUIRED"),
    "no scope": ({"scope": 0}, "scope", "REQUIRED"),
    "an unknown scope": ({"scope": 9}, "scope", "ENUM_UNKNOWN"),
    "an agent for an owner's key": ({"agent_id": "agent-1"}, "agent_id", "SCOPE_MISMATCH"),
    "no agent for an agent's key": (
        {"scope": provider_key_pb2.KEY_SCOPE_AGENT},
        "agent_id",
        "SCOPE_MISMATCH",
    ),
    "an owner's key for the platform": (
        {"scope": provider_key_pb2.KEY_SCOPE_PLATFORM},
        "scope",
        "SCOPE_MISMATCH",
    ),
    "an unknown provider": ({"provider": "nobody"}, "provider", "PROVIDER_UNKNOWN"),
    "no provider": ({"provider": ""}, "provider", "PROVIDER_UNKNOWN"),
    "a label with a control character": ({"label": "a\x07b"}, "label", "TEXT_HAS_CONTROL_CHARACTERS"),
    "an overlong label": ({"label": "x" * 101}, "label", "TEXT_TOO_LONG"),
    "a priority out of range": ({"priority": 1001}, "priority", "PRIORITY_OUT_OF_RANGE"),
    "an unknown custody": ({"custody": 9}, "custody", "ENUM_UNKNOWN"),
    "a base URL with credentials": (
        {"base_url": "https://me:pw@api.anthropic.com"},
        "base_url",
        "BASE_URL_HAS_CREDENTIALS",
    ),
    "a base URL with a query": ({"base_url": "https://api.anthropic.com?x"}, "base_url", "BASE_URL_HAS_QUERY"),
    "a base URL that is an address": ({"base_url": "https://2130706433"}, "base_url", "BASE_URL_IS_ADDRESS"),
    "a private base URL": ({"base_url": "https://metadata.google.internal"}, "base_url", "BASE_URL_IS_PRIVATE"),
    "a base URL without TLS": ({"base_url": "http://api.anthropic.com"}, "base_url", "BASE_URL_NOT_HTTPS"),
    "a vendor's key for another host": (
        {"base_url": "https://api.example.com"},
        "base_url",
        "BASE_URL_OF_ANOTHER_HOST",
    ),
    "no base URL where none is known": (
        {"provider": "openai_compatible"},
        "base_url",
        "BASE_URL_REQUIRED",
    ),
    "a model that cannot do the operation": (
        {"mapping": [ROUTE(operation=EMBEDDING, model="claude-haiku-4-5")]},
        "mapping[0].model",
        "MODEL_UNSUITABLE",
    ),
    "an unknown model without a declaration": (
        {"mapping": [ROUTE(operation=CHAT, model="no-such-model")]},
        "mapping[0].model",
        "MODEL_UNSUITABLE",
    ),
    "an operation twice": (
        {"mapping": [ROUTE(operation=CHAT, model="claude-haiku-4-5")] * 2},
        "mapping[1].operation",
        "OPERATION_REPEATED",
    ),
    "an unknown operation": (
        {"mapping": [ROUTE(operation=99, model="claude-haiku-4-5")]},  # type: ignore[arg-type]  # on purpose
        "mapping[0].operation",
        "ENUM_UNKNOWN",
    ),
    "an unknown capability": (
        {"mapping": [ROUTE(operation=CHAT, model="claude-haiku-4-5", capabilities=["telepathy"])]},
        "mapping[0].capabilities",
        "WORD_UNKNOWN",
    ),
    "a mapping without a model": ({"mapping": [ROUTE(operation=CHAT)]}, "mapping[0].model", "MODEL_EMPTY"),
}


async def violations(call: Awaitable[object]) -> dict[str, str]:
    """Return field and reason of every complaint about a call, each of which has a remedy."""
    error = await refusal(call)
    assert (error.code, error.reason, error.domain) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
        "byok.keyvault",
    )
    bad = BadRequest()
    assert any(detail.Unpack(bad) for detail in error.details)
    assert all(each.description for each in bad.field_violations)
    return {each.field: each.reason for each in bad.field_violations}  # type: ignore[attr-defined]  # newer than the stubs


@pytest.mark.parametrize(("fields", "field", "reason"), CREATE.values(), ids=CREATE)
async def test_a_bad_key_is_refused(shared_vault: Vault, fields: dict[str, Any], field: str, reason: str) -> None:
    """The complaint names the field and the reason."""
    keys = await shared_vault.keys()
    found = await violations(keys.CreateKey(create_request(**fields)))
    assert found[field] == reason


async def test_all_complaints_come_together(shared_vault: Vault) -> None:
    """An owner mends everything in one go, and the secret is in no complaint."""
    keys = await shared_vault.keys()
    request = create_request(label="x" * 101, priority=-1, plaintext=b"sk-canary a", base_url="https://localhost")
    error = await refusal(keys.CreateKey(request))
    assert {*(await violations(keys.CreateKey(request)))} == {"label", "priority", "plaintext", "base_url"}
    assert "canary" not in str(error)


async def test_another_vendors_key_is_named(shared_vault: Vault) -> None:
    """The owner is told which vendor the key looks like."""
    keys = await shared_vault.keys()
    error = await refusal(keys.CreateKey(create_request(provider="openai", plaintext=SECRET)))
    assert "Anthropic" in error.message
    assert SECRET.decode() not in error.message


async def test_a_request_that_is_no_protobuf_is_refused(shared_vault: Vault) -> None:
    """Text that is not UTF-8 is told from a fault of ours."""
    channel = await shared_vault.channel("edge")
    call: Any = channel.unary_unary("/byok.keyvault.v1.KeyService/GetKey")
    error = await refusal(call(b"\x0a\x02\xff\xfe"))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


async def test_an_oversized_request_is_refused(shared_vault: Vault) -> None:
    """More than a message may hold is refused before it is read."""
    keys = await shared_vault.keys()
    error = await refusal(keys.CreateKey(create_request(label="x" * (5 << 20))))
    assert error.code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}


LISTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a negative page": ({"page_size": -1}, "page_size", "PAGE_SIZE_OUT_OF_RANGE"),
    "a huge page": ({"page_size": 1001}, "page_size", "PAGE_SIZE_OUT_OF_RANGE"),
    "a made-up token": ({"page_token": "bm9wZQ=="}, "page_token", "PAGE_TOKEN_INVALID"),
    "a token that is no base64": ({"page_token": "§"}, "page_token", "PAGE_TOKEN_INVALID"),
    "a provider that no text column takes": ({"provider": "open\x00ai"}, "provider", "IDENTIFIER_INVALID"),
}


@pytest.mark.parametrize(("fields", "field", "reason"), LISTS.values(), ids=LISTS)
async def test_a_bad_listing_is_refused(shared_vault: Vault, fields: dict[str, Any], field: str, reason: str) -> None:
    """Page sizes and tokens have bounds."""
    keys = await shared_vault.keys()
    request = key_service_pb2.ListKeysRequest(acting_for=owner(name("owner")), **fields)
    assert await violations(keys.ListKeys(request)) == {field: reason}


@pytest.mark.parametrize(
    ("paths", "reason"),
    [([], "UPDATE_MASK_EMPTY"), (["base_url"], "UPDATE_MASK_UNKNOWN"), (["*"], "UPDATE_MASK_UNKNOWN")],
)
async def test_a_bad_mask_is_refused(shared_vault: Vault, paths: list[str], reason: str) -> None:
    """An update names what it changes, and never the base URL."""
    keys = await shared_vault.keys()
    request = key_service_pb2.UpdateKeyRequest(
        request_id=new_id(), acting_for=owner(), actor="test", key_id="k", update_mask=FieldMask(paths=paths)
    )
    assert await violations(keys.UpdateKey(request)) == {"update_mask": reason}


async def test_an_overlong_reason_is_refused(shared_vault: Vault) -> None:
    """What an owner says of a revocation is bounded."""
    keys = await shared_vault.keys()
    assert await violations(keys.RevokeKey(revoke_request("k", reason="x" * 201))) == {"reason": "TEXT_TOO_LONG"}


BINDINGS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no agent": ({"agent_id": ""}, "agent_id", "IDENTIFIER_INVALID"),
    "no account": ({"account": account_pb2.Account()}, "account", "REQUIRED"),
    "the platform's agent": ({"account": account_pb2.Account(platform=True)}, "account", "ACCOUNT_IS_PLATFORM"),
    "another owner's account": (
        {"account": account_pb2.Account(owner_id="other")},
        "account",
        "ACCOUNT_IS_ANOTHER_OWNER",
    ),
}


@pytest.mark.parametrize(("fields", "field", "reason"), BINDINGS.values(), ids=BINDINGS)
async def test_a_bad_binding_is_refused(shared_vault: Vault, fields: dict[str, Any], field: str, reason: str) -> None:
    """An agent belongs to its owner or to an organization."""
    assert (await violations(shared_vault.bind(**fields)))[field] == reason


LEASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no holder": ({"holder": "me"}, "holder", "HOLDER_MALFORMED"),
    "a short public key": ({"recipient_public_key": b"x"}, "recipient_public_key", "PUBLIC_KEY_INVALID"),
    "a zero public key": ({"recipient_public_key": bytes(32)}, "recipient_public_key", "PUBLIC_KEY_INVALID"),
    "no items": ({"items": []}, "items", "COUNT_OUT_OF_RANGE"),
    "too many items": ({"items": [agent_item()] * 257}, "items", "COUNT_OUT_OF_RANGE"),
    "an item without a purpose": ({"items": [lease_pb2.LeaseItem()]}, "items[0].purpose", "REQUIRED"),
    "too many exclusions": (
        {"items": [agent_item(excluded_key_ids=["x"] * 51)]},
        "items[0].excluded_key_ids",
        "TOO_MANY",
    ),
    "an item without an operation": (
        {"items": [lease_pb2.LeaseItem(agent=lease_pb2.AgentPurpose(agent_id="a"))]},
        "items[0].agent.operation",
        "REQUIRED",
    ),
    "a validation as an operation": (
        {
            "items": [
                lease_pb2.LeaseItem(
                    platform=lease_pb2.PlatformPurpose(operation=operation_pb2.OPERATION_KEY_VALIDATION)
                )
            ]
        },
        "items[0].platform.operation",
        "OPERATION_NOT_LEASED",
    ),
}


@pytest.mark.parametrize(("fields", "field", "reason"), LEASES.values(), ids=LEASES)
async def test_a_bad_lease_request_is_refused(
    shared_vault: Vault, fields: dict[str, Any], field: str, reason: str
) -> None:
    """A malformed call leases nothing."""
    router = await shared_vault.router()
    request = router.request(agent_item())
    for key, value in fields.items():
        request.ClearField(key)  # type: ignore[arg-type]  # names of fields
        request.MergeFrom(lease_service_pb2.AcquireLeasesRequest(**{key: value}))
    assert await violations(router.leases.AcquireLeases(request)) == {field: reason}


async def test_a_bad_outcome_spoils_itself_alone(shared_vault: Vault) -> None:
    """The batch is taken, and the answer says which outcome was not."""
    leases = await shared_vault.leases()
    good = lease_service_pb2.LeaseOutcome(
        lease_id=new_id(), key_id=name("key"), key_version=1, kind=lease_service_pb2.OUTCOME_KIND_SUCCEEDED
    )
    bad = lease_service_pb2.LeaseOutcome(lease_id=new_id(), key_id="k", key_version=1)
    response = await leases.ReportOutcomes(
        lease_service_pb2.ReportOutcomesRequest(holder=new_id(), outcomes=[bad, good])
    )
    codes = [each.error.code for each in response.results]
    assert codes == [grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.NOT_FOUND.value[0]]


@pytest.mark.parametrize("field", ["retry_after", "age"])
@pytest.mark.parametrize(
    "interval", [Duration(seconds=2**62), Duration(seconds=-1), Duration(nanos=-1), Duration(seconds=86_401)]
)
async def test_an_interval_beyond_a_day_spoils_its_outcome_alone(
    shared_vault: Vault, field: str, interval: Duration
) -> None:
    """A message may hold more than any time that means something."""
    leases = await shared_vault.leases()
    good = lease_service_pb2.LeaseOutcome(
        lease_id=new_id(), key_id=name("key"), key_version=1, kind=lease_service_pb2.OUTCOME_KIND_SUCCEEDED
    )
    bad = lease_service_pb2.LeaseOutcome()
    bad.CopyFrom(good)
    getattr(bad, field).CopyFrom(interval)
    response = await leases.ReportOutcomes(
        lease_service_pb2.ReportOutcomesRequest(holder=new_id(), outcomes=[bad, good])
    )
    codes = [each.error.code for each in response.results]
    assert codes == [grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.NOT_FOUND.value[0]]


async def test_a_watch_begins_with_hello(shared_vault: Vault) -> None:
    """Anything else is refused before anything is told."""
    leases = await shared_vault.leases()
    ping = lease_service_pb2.WatchAuthorityRequest(ping=lease_service_pb2.WatchPing(monotonic_ns=1))
    stream = leases.WatchAuthority(iter([ping]))
    assert await violations(stream.read()) == {"hello": "REQUIRED"}

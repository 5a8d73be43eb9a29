"""Secrets that are sealed before they are sent: they open for one owner, provider, URL and request."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from google.protobuf import json_format

from byok.keyvault.v1 import key_service_pb2, provider_key_pb2
from services.keyvault.tests.integration.vault import (
    SECRET,
    SUITE,
    create_request,
    member,
    name,
    new_id,
    owner,
    refusal,
    validation_item,
)

if TYPE_CHECKING:
    from services.keyvault.tests.integration.vault import Vault

SEAL = Path(__file__).parents[4] / "examples" / "sealed_submission" / "seal_stdin.mjs"

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def sealed(vault: Vault, secret: bytes, bound_to: dict[str, str]) -> key_service_pb2.SealedSecret:
    """Seal a secret as a browser would, by what GetSubmissionKey says."""
    key = await (await vault.keys()).GetSubmissionKey(key_service_pb2.GetSubmissionKeyRequest())
    parts = (
        "byok.submission.v1",
        key.deployment,
        bound_to["owner"],
        bound_to["provider"],
        bound_to["base_url"],
        bound_to["request_id"],
        key.submission_key_id,
        *([bound_to["organization"]] if "organization" in bound_to else ()),
    )
    info = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
    ciphertext = SUITE.encrypt(secret, X25519PublicKey.from_public_bytes(key.public_key), info)
    return key_service_pb2.SealedSecret(submission_key_id=key.submission_key_id, ciphertext=ciphertext)


def binding() -> dict[str, str]:
    """Return what a submission is bound to."""
    return {"owner": name("owner"), "provider": "anthropic", "base_url": "", "request_id": new_id()}


async def test_a_sealed_secret_is_stored_like_a_plain_one(shared_vault: Vault) -> None:
    """Trimmed, fingerprinted, leased; and the same request with a fresh seal of the same secret is the same request."""
    keys, router = await shared_vault.keys(), await shared_vault.router()
    bound = binding()
    request = create_request(
        acting_for=owner(bound["owner"]),
        request_id=bound["request_id"],
        sealed=await sealed(shared_vault, SECRET + b"\n", bound),
    )
    created = await keys.CreateKey(request)
    assert [each.field for each in created.adjustments] == ["sealed"]
    leased = await router.acquire(validation_item(created.key.key_id, bound["owner"]))
    assert router.open(leased)[0].secret == SECRET
    request.sealed.CopyFrom(await sealed(shared_vault, SECRET, bound))
    assert (await keys.CreateKey(request)).key == created.key
    request.sealed.CopyFrom(await sealed(shared_vault, SECRET + b"2", bound))
    assert (await refusal(keys.CreateKey(request))).reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("changed", ["owner", "provider", "base_url", "request_id"])
async def test_a_sealed_secret_opens_for_what_it_was_sealed_for(shared_vault: Vault, changed: str) -> None:
    """A blob that is taken to another owner, provider, base URL or request does not open."""
    keys = await shared_vault.keys()
    bound = binding()
    blob = await sealed(shared_vault, SECRET, bound)
    moved = (
        bound
        | {
            "owner": {"owner": name("owner")},
            "provider": {"provider": "openai_compatible", "base_url": "https://api.example.com"},
            "base_url": {"base_url": "https://api.anthropic.com"},
            "request_id": {"request_id": new_id()},
        }[changed]
    )
    request = create_request(
        acting_for=owner(moved["owner"]),
        provider=moved["provider"],
        base_url=moved["base_url"],
        request_id=moved["request_id"],
        sealed=blob,
    )
    error = await refusal(keys.CreateKey(request))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SEALED_SECRET_INVALID")


async def test_a_secret_sealed_for_an_organization_opens_for_it_alone(shared_vault: Vault) -> None:
    """An owner's blob becomes no key of an organization of theirs, and the other way round."""
    keys = await shared_vault.keys()
    bound_to = binding()
    organization = bound_to | {"organization": name("org")}
    principal = member(organization["organization"], bound_to["owner"])
    of_organization = {
        "acting_for": principal,
        "scope": provider_key_pb2.KEY_SCOPE_ORGANIZATION,
        "organization_id": organization["organization"],
        "request_id": bound_to["request_id"],
    }
    own = {"acting_for": principal, "request_id": bound_to["request_id"]}
    for fields, sealed_for in ((of_organization, bound_to), (own, organization)):
        request = create_request(sealed=await sealed(shared_vault, SECRET, sealed_for), **fields)
        assert (await refusal(keys.CreateKey(request))).reason == "SEALED_SECRET_INVALID"
    request = create_request(sealed=await sealed(shared_vault, SECRET, organization), **of_organization)
    assert (await keys.CreateKey(request)).key.owned_by.organization_id == organization["organization"]


@pytest.mark.parametrize("key_id", ["", "submission-2", "submission-", "submission-x", "submission-" + "9" * 40])
async def test_an_unknown_submission_key_is_refused(shared_vault: Vault, key_id: str) -> None:
    """The owner is told to read the key again."""
    keys = await shared_vault.keys()
    blob = key_service_pb2.SealedSecret(submission_key_id=key_id, ciphertext=b"x" * 80)
    error = await refusal(keys.CreateKey(create_request(sealed=blob)))
    assert error.reason == "SEALED_SECRET_INVALID"
    assert "GetSubmissionKey" in error.message


@pytest.mark.parametrize(
    ("secret", "reason"), [(b" ", "SECRET_EMPTY"), (b"gsk_" + b"a" * 52, "SECRET_OF_ANOTHER_VENDOR")]
)
async def test_what_is_sealed_is_judged_like_a_plain_secret(shared_vault: Vault, secret: bytes, reason: str) -> None:
    """Sealing hides a secret from the way, not from the checks."""
    keys = await shared_vault.keys()
    bound = binding()
    request: Any = create_request(
        acting_for=owner(bound["owner"]),
        request_id=bound["request_id"],
        sealed=await sealed(shared_vault, secret, bound),
    )
    error = await refusal(keys.CreateKey(request))
    assert error.reason == "INVALID_ARGUMENT"
    assert any(reason.encode() in detail.value for detail in error.details)


async def sealed_by_webcrypto(vault: Vault, secret: bytes, bound_to: dict[str, str]) -> key_service_pb2.SealedSecret:
    """Seal a secret by the example in JavaScript, which shares no code with the service."""
    key = await (await vault.keys()).GetSubmissionKey(key_service_pb2.GetSubmissionKeyRequest())
    request = {
        "submissionKey": json_format.MessageToDict(key),
        "ownerId": bound_to["owner"],
        "provider": bound_to["provider"],
        "baseUrl": bound_to["base_url"],
        "requestId": bound_to["request_id"],
        "secret": secret.decode(),
    }
    node = await asyncio.create_subprocess_exec(
        # Node.js itself comes from the lock, as a wheel.
        str(Path(sys.executable).with_name("node")),
        str(SEAL),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer, complaint = await node.communicate(json.dumps(request).encode())
    assert node.returncode == 0, complaint.decode()
    return json_format.Parse(answer, key_service_pb2.SealedSecret())


async def test_a_secret_that_webcrypto_sealed_is_stored_and_leased(shared_vault: Vault) -> None:
    """A second implementation of HPKE and of what a submission is bound to: the secret comes out as it went in."""
    keys, router = await shared_vault.keys(), await shared_vault.router()
    bound = binding()
    created = await keys.CreateKey(
        create_request(
            acting_for=owner(bound["owner"]),
            request_id=bound["request_id"],
            sealed=await sealed_by_webcrypto(shared_vault, SECRET, bound),
        )
    )
    leased = router.open(await router.acquire(validation_item(created.key.key_id, bound["owner"])))
    assert [lease.secret for lease in leased] == [SECRET]


async def test_what_webcrypto_sealed_for_one_owner_opens_for_no_other(shared_vault: Vault) -> None:
    """The binding is the same on both sides, so that redirecting the ciphertext is refused."""
    bound = binding()
    error = await refusal(
        (await shared_vault.keys()).CreateKey(
            create_request(
                acting_for=owner(name("thief")),
                request_id=bound["request_id"],
                sealed=await sealed_by_webcrypto(shared_vault, SECRET, bound),
            )
        )
    )
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SEALED_SECRET_INVALID")

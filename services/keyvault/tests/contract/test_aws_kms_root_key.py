"""What the root key in AWS KMS promises beyond the contract."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import pytest

from keyvault.adapters.root_keys.aws_kms import AwsKmsOptions, AwsKmsRootKey
from keyvault.domain.errors import RootKeyUnavailableError, RootKeyUnusableError
from services.keyvault.tests.contract.root_key_contract import ATTEMPTS, DATA, LIMITS, attempts, secret

if TYPE_CHECKING:
    from pathlib import Path

    from services.keyvault.tests.contract.root_key_kits import AwsKmsKit

MULTI_REGION: Final = "arn:aws:kms:{}:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab"


@pytest.mark.parametrize(
    ("status", "code", "kind", "asked"),
    [
        (400, "InvalidCiphertextException", RootKeyUnusableError, 1),
        (400, "IncorrectKeyException", RootKeyUnusableError, 1),
        (400, "InvalidKeyUsageException", RootKeyUnusableError, 1),
        (400, "NotFoundException", RootKeyUnusableError, 1),
        (400, "ValidationException", RootKeyUnusableError, 1),
        (400, "DisabledException", RootKeyUnavailableError, 1),
        (400, "KMSInvalidStateException", RootKeyUnavailableError, 1),
        (400, "UnrecognizedClientException", RootKeyUnavailableError, 1),
        (400, "ExpiredTokenException", RootKeyUnavailableError, 1),
        (400, "InvalidSignatureException", RootKeyUnavailableError, 1),
        (400, "ThrottlingException", RootKeyUnavailableError, ATTEMPTS),
        (500, "KMSInternalException", RootKeyUnavailableError, ATTEMPTS),
        (503, "DependencyTimeoutException", RootKeyUnavailableError, ATTEMPTS),
        (500, "KeyUnavailableException", RootKeyUnavailableError, ATTEMPTS),
        (502, "<html>", RootKeyUnavailableError, ATTEMPTS),
    ],
)
async def test_what_kms_answers_is_told_apart(
    aws_kms_kit: AwsKmsKit, status: int, code: str, kind: type[Exception], asked: int
) -> None:
    """What asking again cannot mend is asked once, and is no outage; what may pass is asked again, and is one."""
    front = await aws_kms_kit.front()
    root = await aws_kms_kit.root(endpoint_url=front.endpoint_url, asked=attempts(LIMITS))
    wrapped = await root.wrap(secret(), DATA)
    front.requests.clear()
    front.faults += [(status, code)] * 10
    with pytest.raises(kind) as caught:
        await root.unwrap(wrapped, DATA)
    assert type(caught.value) is kind
    assert len(front.requests) == asked
    assert "<html>" not in str(caught.value)


async def test_a_throttled_call_is_made_again(aws_kms_kit: AwsKmsKit) -> None:
    """One refusal for the rate is no reason not to start."""
    front = await aws_kms_kit.front()
    root = await aws_kms_kit.root(endpoint_url=front.endpoint_url, asked=attempts(LIMITS))
    front.faults.append((400, "ThrottlingException"))
    assert await root.unwrap(await root.wrap(secret(), DATA), DATA) == secret()


async def test_denial_of_the_key_is_told_from_denial_of_the_bytes(aws_kms_kit: AwsKmsKit) -> None:
    """KMS denies a ciphertext that it will not tell about as it denies the key; a probe tells which it was."""
    front = await aws_kms_kit.front()
    root = await aws_kms_kit.root(endpoint_url=front.endpoint_url, asked=attempts(LIMITS))
    wrapped = await root.wrap(secret(), DATA)
    front.faults.append((400, "AccessDeniedException"))
    with pytest.raises(RootKeyUnusableError):
        await root.unwrap(wrapped, DATA)
    front.faults += [(400, "AccessDeniedException")] * 2
    with pytest.raises(RootKeyUnavailableError, match="kms:Decrypt"):
        await root.unwrap(wrapped, DATA)


async def test_kms_is_told_which_key_and_a_hash_of_what_it_is_bound_to(aws_kms_kit: AwsKmsKit) -> None:
    """The encryption context is written into CloudTrail, so it holds a hash; Decrypt names the key it must be."""
    front = await aws_kms_kit.front()
    root = await aws_kms_kit.root(endpoint_url=front.endpoint_url)
    await root.unwrap(await root.wrap(secret(), DATA), DATA)
    assert [operation for operation, _ in front.requests] == ["Encrypt", "Decrypt"]
    for _, body in front.requests:
        assert body["EncryptionContext"] == {"byok:associated-data-sha256": hashlib.sha256(DATA).hexdigest()}
        assert f"aws-kms:{body['KeyId']}" == root.root_key_id


async def test_an_answer_by_another_key_is_refused(aws_kms_kit: AwsKmsKit) -> None:
    """An endpoint that uses another key than it was told is not believed, neither to wrap nor to unwrap."""
    front = await aws_kms_kit.front()
    root = await aws_kms_kit.root(endpoint_url=front.endpoint_url)
    wrapped = await root.wrap(secret(), DATA)
    front.said_key_arn = MULTI_REGION.format("eu-central-1")
    with pytest.raises(RootKeyUnusableError, match="another key"):
        await root.wrap(secret(), DATA)
    with pytest.raises(RootKeyUnusableError, match="another key"):
        await root.unwrap(wrapped, DATA)


async def test_a_machine_without_credentials_is_told_so(
    aws_kms_kit: AwsKmsKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked of KMS, and the error names what to give this service."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    front = await aws_kms_kit.front()
    root = await aws_kms_kit.root(endpoint_url=front.endpoint_url, asked=attempts(LIMITS))
    with pytest.raises(RootKeyUnavailableError, match="role"):
        await root.wrap(secret(), DATA)
    assert front.requests == []


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:kms:eu-central-1:123456789012:alias/byok",
        "1234abcd-12ab-34cd-56ef-1234567890ab",
        "arn:aws:s3:::bucket",
        "",
    ],
)
def test_only_the_arn_of_a_key_names_one(arn: str) -> None:
    """An alias could be pointed at another key, and a bare id at one of another account."""
    with pytest.raises(RootKeyUnusableError, match="alias"):
        AwsKmsRootKey(AwsKmsOptions(key_arn=arn), attempts=attempts())


def test_replicas_of_a_multi_region_key_are_one_root_key() -> None:
    """What was wrapped in one Region is looked for under the same id in another; other keys keep their Region."""
    ids = {
        AwsKmsRootKey(AwsKmsOptions(key_arn=MULTI_REGION.format(region)), attempts=attempts()).root_key_id
        for region in ("eu-central-1", "us-east-1")
    }
    assert ids == {"aws-kms:" + MULTI_REGION.format("*")}
    plain = MULTI_REGION.replace("mrk-", "").format("eu-central-1")
    assert AwsKmsRootKey(AwsKmsOptions(key_arn=plain), attempts=attempts()).root_key_id == f"aws-kms:{plain}"

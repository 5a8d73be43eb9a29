"""Which root keys an operator can set, from the environment as a deployment does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from keyvault.settings import RootKeySettings, Settings
from servicekit.settings import SettingsError, load

PKCS11 = {"module": "/m.so", "token_label": "t", "key_label": "k", "pin_file": "/pin"}
ARN = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
VAULT = {"address": "https://vault:8200", "key": "byok", "token_file": "/token"}


@pytest.mark.parametrize(
    "given",
    [
        {"file": "/root.key"},
        {"provider": "file", "file": "/root.key"},
        {"provider": "pkcs11", "pkcs11": PKCS11},
        {"provider": "pkcs11", "pkcs11": PKCS11 | {"iv_source": "token", "token_serial": "1a2b"}},
        {"provider": "aws_kms", "aws_kms": {"key_arn": ARN}},
        {"provider": "aws_kms", "aws_kms": {"key_arn": ARN, "endpoint_url": "https://vpce.example"}},
        {"provider": "vault_transit", "vault_transit": VAULT},
        {"provider": "vault_transit", "vault_transit": VAULT | {"address": "http://127.0.0.1:8200"}},
        {
            "provider": "vault_transit",
            "vault_transit": {
                "address": "https://vault:8200",
                "key": "byok",
                "auth": "approle",
                "role": "r",
                "secret_id_file": "/s",
            },
        },
        {
            "provider": "vault_transit",
            "vault_transit": {"address": "https://vault:8200", "key": "byok", "auth": "kubernetes", "role": "r"},
        },
    ],
)
def test_each_provider_is_set_by_its_own_group(given: dict[str, Any]) -> None:
    """Every provider can be set, and a file without naming its provider, as before."""
    settings = RootKeySettings.model_validate(given)
    assert getattr(settings, settings.provider) is not None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "needs file"),
        ({"pkcs11": PKCS11}, "needs file"),
        ({"provider": "aws_kms"}, "needs aws_kms"),
        ({"provider": "aws_kms", "file": "/root.key"}, "needs aws_kms"),
        ({"provider": "file", "file": "/root.key", "aws_kms": {"key_arn": ARN}}, "no other group"),
        ({"provider": "aws_kms", "aws_kms": {"key_arn": ARN.replace("key/", "alias/")}}, "pattern"),
        ({"provider": "vault_transit", "vault_transit": VAULT | {"address": "http://vault:8200"}}, "pattern"),
        ({"provider": "vault_transit", "vault_transit": VAULT | {"address": "https://u:p@vault:8200"}}, "pattern"),
        ({"provider": "vault_transit", "vault_transit": VAULT | {"mount": "../sys"}}, "mount"),
        ({"provider": "vault_transit", "vault_transit": VAULT | {"key": "a/b"}}, "pattern"),
        ({"provider": "vault_transit", "vault_transit": VAULT | {"key": ".."}}, "pattern"),
        ({"provider": "vault_transit", "vault_transit": VAULT | {"token_file": None}}, "token_file"),
        ({"provider": "vault_transit", "vault_transit": VAULT | {"auth": "approle"}}, "role, secret_id_file"),
        ({"provider": "vault_transit", "vault_transit": VAULT | {"auth": "kubernetes"}}, "role"),
        ({"provider": "hsm"}, "provider"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, Any], said: str) -> None:
    """A group that its provider lacks, one too many, a secret in an address: each is told before anything starts."""
    with pytest.raises(ValidationError, match=said):
        RootKeySettings.model_validate(given)


def test_the_environment_names_both_root_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present root key and the next one are set as a manifest sets them."""
    environment = {
        "SERVER__TLS__CERTIFICATE_FILE": "/c",
        "SERVER__TLS__PRIVATE_KEY_FILE": "/k",
        "SERVER__TLS__CA_FILE": "/a",
        "POSTGRES__DSN": "postgresql://x",
        "DEPLOYMENT": "test",
        "ROOT_KEY__FILE": "/root.key",
        "NEXT_ROOT_KEY__PROVIDER": "aws_kms",
        "NEXT_ROOT_KEY__AWS_KMS__KEY_ARN": ARN,
        "NEXT_ROOT_KEY__TIMEOUT": "2.5",
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"BYOK_KEYVAULT_{name}", value)
    settings = load(Settings, ["serve"], commands=("serve",)).settings
    assert settings.root_key.file == Path("/root.key")
    assert settings.next_root_key is not None
    assert settings.next_root_key.aws_kms is not None
    assert settings.next_root_key.aws_kms.key_arn == ARN
    assert settings.next_root_key.timeout.total_seconds() == 2.5
    monkeypatch.setenv("BYOK_KEYVAULT_NEXT_ROOT_KEY__PROVIDER", "pkcs11")
    with pytest.raises((SettingsError, SystemExit)):
        load(Settings, ["serve"], commands=("serve",))


def test_libraries_of_providers_that_were_not_chosen_are_not_loaded() -> None:
    """A replica with its root key in a file does not carry the clients of the others in its memory."""
    program = "import sys, keyvault.app; print([name for name in ('botocore', 'pkcs11') if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603 (our own program)
    assert loaded.stdout == "[]\n"

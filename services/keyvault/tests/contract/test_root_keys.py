"""The root key contract on every provider."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.keyvault.tests.contract.root_key_contract import RemoteRootKeyContract, RootKeyContract
from services.keyvault.tests.contract.root_key_kits import FileKit

if TYPE_CHECKING:
    from services.keyvault.tests.contract.root_key_kits import AwsKmsKit, Pkcs11Kit, VaultKit


class TestFileRootKey(RootKeyContract):
    """The root key in a file."""

    @pytest.fixture
    def kit(self) -> FileKit:
        """Return the provider."""
        return FileKit()


class TestPkcs11RootKey(RemoteRootKeyContract):
    """The root key on a token of SoftHSM2."""

    @pytest.fixture
    def kit(self, pkcs11_kit: Pkcs11Kit) -> Pkcs11Kit:
        """Return the provider."""
        return pkcs11_kit

    @pytest.fixture
    def remote_kit(self, pkcs11_kit: Pkcs11Kit) -> Pkcs11Kit:
        """Return the provider."""
        return pkcs11_kit


class TestAwsKmsRootKey(RemoteRootKeyContract):
    """The root key in moto's AWS KMS."""

    @pytest.fixture
    def kit(self, aws_kms_kit: AwsKmsKit) -> AwsKmsKit:
        """Return the provider."""
        return aws_kms_kit

    @pytest.fixture
    def remote_kit(self, aws_kms_kit: AwsKmsKit) -> AwsKmsKit:
        """Return the provider."""
        return aws_kms_kit


class TestVaultTransitRootKey(RemoteRootKeyContract):
    """The root key in a transit engine: of the server in BYOK_TEST_VAULT_ADDR if set, else of a stand-in."""

    @pytest.fixture
    def kit(self, vault_kit: VaultKit) -> VaultKit:
        """Return the provider."""
        return vault_kit

    @pytest.fixture
    def remote_kit(self, vault_kit: VaultKit) -> VaultKit:
        """Return the provider."""
        return vault_kit

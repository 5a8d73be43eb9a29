"""The root keys that an operator chose.

Each provider's libraries are loaded only when it was chosen: together they take more than 10 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyvault.adapters.root_keys.attempts import AttemptLimits, Attempts
from keyvault.adapters.root_keys.file import read_root_key
from keyvault.adapters.root_keys.vault_login import RoleLogin, TokenFileLogin
from keyvault.domain.errors import RootKeyUnusableError

if TYPE_CHECKING:
    import contextlib

    from keyvault.ports import RootKey
    from keyvault.settings import AwsKmsSettings, Pkcs11Settings, RootKeySettings, Settings, VaultTransitSettings
    from servicekit.clock import Clock


async def open_root_keys(
    settings: Settings, stack: contextlib.AsyncExitStack, *, clock: Clock
) -> tuple[RootKey, RootKey | None]:
    """Return the root key and the next one; nothing far away is asked yet, and they are closed with `stack`.

    Raises:
        RootKeyUnusableError: a file is missing or malformed, or both are the same key.
    """
    root = await open_root_key(settings.root_key, stack, clock=clock)
    if settings.next_root_key is None:
        return root, None
    next_root = await open_root_key(settings.next_root_key, stack, clock=clock)
    if next_root.root_key_id == root.root_key_id:
        message = "next_root_key is the root key that is in use already; set another one, or none"
        raise RootKeyUnusableError(message, root_key_id=root.root_key_id)
    return root, next_root


async def open_root_key(settings: RootKeySettings, stack: contextlib.AsyncExitStack, *, clock: Clock) -> RootKey:
    """Return the root key that `settings` name. Raises RootKeyUnusableError."""
    limits = AttemptLimits(timeout=settings.timeout, attempts_max=settings.attempts_max)
    attempts = Attempts(limits, clock=clock)
    if settings.pkcs11 is not None:
        return _open_pkcs11(settings.pkcs11, attempts)
    if settings.aws_kms is not None:
        return await _open_aws_kms(settings.aws_kms, attempts, stack)
    if settings.vault_transit is not None:
        return await _open_vault_transit(settings.vault_transit, attempts, stack)
    if settings.file is None:  # The settings themselves refuse this.
        raise RootKeyUnusableError("no root key is set; set root_key.file, or another provider")
    return read_root_key(settings.file)


def _open_pkcs11(settings: Pkcs11Settings, attempts: Attempts) -> RootKey:
    from keyvault.adapters.root_keys.pkcs11 import Pkcs11RootKey  # noqa: PLC0415 (as said above)
    from keyvault.adapters.root_keys.pkcs11_module import TokenOptions  # noqa: PLC0415 (as said above)

    options = TokenOptions(
        module=settings.module,
        token_label=settings.token_label,
        token_serial=settings.token_serial,
        key_label=settings.key_label,
        iv_source=settings.iv_source,
    )
    return Pkcs11RootKey(options, pin_file=settings.pin_file, attempts=attempts)


async def _open_aws_kms(settings: AwsKmsSettings, attempts: Attempts, stack: contextlib.AsyncExitStack) -> RootKey:
    from keyvault.adapters.root_keys.aws_kms import AwsKmsOptions, open_aws_kms  # noqa: PLC0415 (as said above)

    options = AwsKmsOptions(key_arn=settings.key_arn, endpoint_url=settings.endpoint_url)
    return await stack.enter_async_context(open_aws_kms(options, attempts=attempts))


async def _open_vault_transit(
    settings: VaultTransitSettings, attempts: Attempts, stack: contextlib.AsyncExitStack
) -> RootKey:
    from keyvault.adapters.root_keys.vault_transit import (  # noqa: PLC0415 (as said above)
        VaultTransitOptions,
        open_vault_transit,
    )

    options = VaultTransitOptions(
        address=settings.address,
        namespace=settings.namespace,
        mount=settings.mount,
        key=settings.key,
        ca_file=settings.ca_file,
        login=_vault_login(settings),
    )
    return await stack.enter_async_context(open_vault_transit(options, attempts=attempts))


def _vault_login(settings: VaultTransitSettings) -> TokenFileLogin | RoleLogin:
    mount = settings.auth_mount or settings.auth
    if settings.auth == "approle" and settings.role is not None and settings.secret_id_file is not None:
        return RoleLogin(method="approle", mount=mount, role=settings.role, secret_file=settings.secret_id_file)
    if settings.auth == "kubernetes" and settings.role is not None:
        return RoleLogin(method="kubernetes", mount=mount, role=settings.role, secret_file=settings.jwt_file)
    if settings.token_file is None:  # The settings themselves refuse this.
        raise RootKeyUnusableError("auth token needs root_key.vault_transit.token_file")
    return TokenFileLogin(token_file=settings.token_file)

"""Opens a secret as it was submitted, in clear or sealed, and judges its shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.errors import KekVersionUnavailableError, SealedSecretInvalidError
from keyvault.domain.keyring import KeyPurpose
from keyvault.domain.new_keys import refused
from keyvault.domain.ownership import Principal
from keyvault.domain.sealing import open_submission, submission_key_id
from keyvault.domain.submitted_secrets import Fingerprint, SubmittedSecret, fingerprint, parse_secret
from servicekit.secrets import Secret

if TYPE_CHECKING:
    from keyvault.domain.keyring import KeyringKey
    from keyvault.ports import Capabilities, KeyringSource

SEALED_BYTES_MAX: Final = 8192
_KEY_ID_PREFIX: Final = "submission-"
_VERSION_DIGITS_MAX: Final = 9


@dataclass(frozen=True, slots=True)
class PlainInput:
    """A secret that was sent in clear, inside TLS."""

    secret: Secret | None


@dataclass(frozen=True, slots=True)
class SealedInput:
    """A secret that was sealed to the submission key before it was sent."""

    submission_key_id: str
    ciphertext: bytes


SecretInput = PlainInput | SealedInput


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionContext:
    """What a sealed secret must be bound to: as the request says it, not as it is stored."""

    principal: Principal
    provider: str
    base_url: str
    request_id: str
    organization_id: str = ""


class OpenSubmission:
    """Opens and checks what owners send."""

    def __init__(self, keyring: KeyringSource, capabilities: Capabilities) -> None:
        """Open with the submission keys of `keyring`; tell vendors' keys apart by `capabilities`."""
        self._keyring = keyring
        self._capabilities = capabilities

    def __call__(self, submitted: SecretInput, context: SubmissionContext) -> SubmittedSecret:
        """Return the secret, trimmed, with what was put right.

        Raises:
            SealedSecretInvalidError: it was sealed to another key, or bound to something else.
            InvalidArgumentError: it cannot be a provider's key, or is plainly another vendor's.
        """
        if isinstance(submitted, SealedInput):
            parsed = parse_secret(self._opened(submitted, context), field="sealed")
        else:
            parsed = parse_secret(submitted.secret.reveal() if submitted.secret else b"", field="plaintext")
        vendor = self._capabilities.foreign_vendor(context.provider, parsed.secret.reveal())
        if vendor:
            remedy = f"This looks like a key of {vendor}. Name that provider, or send the key of {context.provider}."
            raise refused(
                "sealed" if isinstance(submitted, SealedInput) else "plaintext", "SECRET_OF_ANOTHER_VENDOR", remedy
            )
        return parsed

    def fingerprint(self, secret: Secret) -> Fingerprint:
        """Return what the owner may see of `secret`."""
        has_format = self._capabilities.has_vendor_format(secret.reveal())
        return fingerprint(secret, has_vendor_format=has_format)

    def _opened(self, sealed: SealedInput, context: SubmissionContext) -> bytes:
        if len(sealed.ciphertext) > SEALED_BYTES_MAX:
            raise refused("sealed.ciphertext", "SECRET_TOO_LONG", f"Send at most {SEALED_BYTES_MAX} bytes.")
        key = self._submission_key(sealed.submission_key_id)
        bound_to = (
            self._keyring.current().deployment,
            context.principal.owner_id,
            context.provider,
            context.base_url,
            context.request_id,
            submission_key_id(key),
            # A part of its own, so that no owner's blob opens as an organization's, whatever they are called.
            *([context.organization_id] if context.organization_id else ()),
        )
        return open_submission(sealed.ciphertext, key=key, bound_to=bound_to).reveal()

    def _submission_key(self, key_id: str) -> KeyringKey:
        digits = key_id.removeprefix(_KEY_ID_PREFIX)
        is_well_formed = key_id.startswith(_KEY_ID_PREFIX) and digits.isascii() and digits.isdigit()
        message = "there is no such submission key; read it again with GetSubmissionKey and seal anew"
        if not is_well_formed or len(digits) > _VERSION_DIGITS_MAX:
            raise SealedSecretInvalidError(message)
        try:
            return self._keyring.current().key(KeyPurpose.SUBMISSION, int(digits))
        except KekVersionUnavailableError:
            raise SealedSecretInvalidError(message) from None

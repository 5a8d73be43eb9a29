"""Everything that this service refuses or cannot do. `api/errors.py` gives each its code and reason."""

from __future__ import annotations

from servicekit.errors import DomainError, UnavailableError


class ProviderKeyNotFoundError(DomainError):
    """No such provider key, or it is another owner's: the two are never told apart."""


class AgentNotFoundError(DomainError):
    """The agent is not bound to an owner here, or is another owner's: the two are never told apart."""


class ProviderKeyRevokedError(DomainError):
    """The provider key is revoked for good; the owner adds a new one."""


class EtagMismatchError(DomainError):
    """The provider key changed since the caller read it."""


class HaltedError(DomainError):
    """An emergency stop covers what was asked for. Nothing else may pay instead."""


class ShareNotFoundError(DomainError):
    """The key is not shared with the agent."""


class HaltNotFoundError(DomainError):
    """There is no such halt in force, or it is another owner's: the two are never told apart."""


class AgentAlreadyBoundError(DomainError):
    """The agent is bound to another account than the caller expects."""


class RequestIdReusedError(DomainError):
    """The request id was used before, with another body."""


class SealedSecretInvalidError(DomainError):
    """The sealed secret does not open for this owner, provider, base URL and request id."""


class EnvelopeCorruptError(DomainError):
    """Sealed bytes fail authentication: they were changed, or belong to another key, owner, provider or base URL."""


class AuthorityForgedError(DomainError):
    """An authority row fails authentication, or disagrees with the columns that it was found by."""


class KekVersionUnavailableError(DomainError):
    """A version of a key of the ring is unknown here, or its state forbids what was asked."""


class KekNotPrimaryError(DomainError):
    """A wrap was made under a version that is PRIMARY no more; the keyring must be read again."""


class KeyringStateError(DomainError):
    """A key version cannot go from this state to that, or something needs it still."""


class KeyringVersionNotFoundError(DomainError):
    """The keyring has no such version."""


class ReplicaNotReadyError(DomainError):
    """A live replica has not proved yet that it can use a staged version, or the next root key."""


class ConfirmationRequiredError(DomainError):
    """What is asked cannot be undone, and is to be repeated with the confirmation that is told."""


class KeyringUnusableError(DomainError):
    """The keyring lacks a primary version, or the primary KEK does not open its canary."""


class RootKeyUnusableError(DomainError):
    """The root key cannot be read, is malformed, or is not the one that wrapped the keyring."""


class RootKeyUnavailableError(UnavailableError):
    """Where the root key lives cannot be reached in time, throttles, or refuses this service."""


class StaleAuthorityError(DomainError):
    """Authority changed again and again between reading and appending, or the log ran past every window."""


class AuditUnavailableError(UnavailableError):
    """The audit entry could not be made durable, so nothing was changed and no secret left."""


class LeaseUnknownError(DomainError):
    """The reporting process was granted no such lease on this version of the key."""


class AuditLogCorruptError(DomainError):
    """The log does not agree with its own seals, tree or checkpoints. Nothing is signed or served from it."""


class AuditEntryNotFoundError(DomainError):
    """The log has no such entry, or keeps it no more."""


class ErasureNotFoundError(DomainError):
    """No erasure of this owner was asked for, or it is another owner's: the two are never told apart."""


class LeaseBoundReachedError(DomainError):
    """The caller leased as many distinct keys within a minute as one caller may."""


class SchemaNotReadyError(DomainError):
    """The database does not carry the schema that this release needs."""

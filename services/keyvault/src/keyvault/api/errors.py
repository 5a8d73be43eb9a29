"""The one table that gives this service's errors their codes and reasons."""

from __future__ import annotations

from typing import Final

import grpc

from keyvault.domain.errors import (
    AgentAlreadyBoundError,
    AgentNotFoundError,
    AuditEntryNotFoundError,
    AuditLogCorruptError,
    AuditUnavailableError,
    AuthorityForgedError,
    ConfirmationRequiredError,
    EnvelopeCorruptError,
    ErasureNotFoundError,
    EtagMismatchError,
    HaltedError,
    HaltNotFoundError,
    KekNotPrimaryError,
    KekVersionUnavailableError,
    KeyringStateError,
    KeyringUnusableError,
    KeyringVersionNotFoundError,
    LeaseBoundReachedError,
    LeaseUnknownError,
    ProviderKeyNotFoundError,
    ProviderKeyRevokedError,
    ReplicaNotReadyError,
    RequestIdReusedError,
    RootKeyUnavailableError,
    RootKeyUnusableError,
    SchemaNotReadyError,
    SealedSecretInvalidError,
    ShareNotFoundError,
    StaleAuthorityError,
)
from servicekit.errors import UnavailableError
from servicekit.wire import ErrorTable, WireError

DOMAIN: Final = "byok.keyvault"

_Code = grpc.StatusCode

ERRORS: Final = ErrorTable(
    DOMAIN,
    {
        RequestIdReusedError: WireError(_Code.ALREADY_EXISTS, "REQUEST_ID_REUSED"),
        ProviderKeyNotFoundError: WireError(_Code.NOT_FOUND, "PROVIDER_KEY_NOT_FOUND", ("provider_key_id",)),
        AgentNotFoundError: WireError(_Code.NOT_FOUND, "AGENT_NOT_FOUND", ("agent_id",)),
        ProviderKeyRevokedError: WireError(_Code.FAILED_PRECONDITION, "PROVIDER_KEY_REVOKED", ("provider_key_id",)),
        EtagMismatchError: WireError(_Code.ABORTED, "ETAG_MISMATCH", ("provider_key_id",)),
        AgentAlreadyBoundError: WireError(_Code.FAILED_PRECONDITION, "AGENT_ALREADY_BOUND", ("agent_id",)),
        EnvelopeCorruptError: WireError(_Code.DATA_LOSS, "ENVELOPE_CORRUPT", ("provider_key_id",)),
        AuthorityForgedError: WireError(_Code.DATA_LOSS, "AUTHORITY_CORRUPT"),
        KekVersionUnavailableError: WireError(_Code.UNAVAILABLE, "KEK_UNAVAILABLE", ("kek_version",)),
        KekNotPrimaryError: WireError(_Code.UNAVAILABLE, "KEK_UNAVAILABLE"),
        KeyringUnusableError: WireError(_Code.UNAVAILABLE, "KEK_UNAVAILABLE", ("kek_version",)),
        RootKeyUnusableError: WireError(_Code.UNAVAILABLE, "KEK_UNAVAILABLE"),
        RootKeyUnavailableError: WireError(_Code.UNAVAILABLE, "ROOT_KEY_UNAVAILABLE", ("root_key_id",)),
        KeyringStateError: WireError(_Code.FAILED_PRECONDITION, "KEYRING_STATE", ("version", "state")),
        KeyringVersionNotFoundError: WireError(_Code.NOT_FOUND, "KEYRING_VERSION_NOT_FOUND", ("purpose", "version")),
        ReplicaNotReadyError: WireError(_Code.FAILED_PRECONDITION, "REPLICA_NOT_READY", ("replicas",)),
        ConfirmationRequiredError: WireError(_Code.FAILED_PRECONDITION, "CONFIRMATION_REQUIRED", ("confirmation",)),
        SchemaNotReadyError: WireError(_Code.UNAVAILABLE, "AUDIT_UNAVAILABLE"),
        # A change that could not be appended for the changes of others is as good as a log that is busy: retry.
        StaleAuthorityError: WireError(_Code.UNAVAILABLE, "AUDIT_UNAVAILABLE"),
        AuditUnavailableError: WireError(_Code.UNAVAILABLE, "AUDIT_UNAVAILABLE"),
        # The log and what it is about are one database: when that is away, no entry can be made durable.
        UnavailableError: WireError(_Code.UNAVAILABLE, "AUDIT_UNAVAILABLE"),
        HaltedError: WireError(_Code.FAILED_PRECONDITION, "HALTED", ("halt_scope",)),
        HaltNotFoundError: WireError(_Code.NOT_FOUND, "HALT_NOT_FOUND", ("halt_id",)),
        ShareNotFoundError: WireError(_Code.NOT_FOUND, "SHARE_NOT_FOUND", ("provider_key_id", "agent_id")),
        ErasureNotFoundError: WireError(_Code.NOT_FOUND, "ERASURE_NOT_FOUND"),
        LeaseUnknownError: WireError(_Code.NOT_FOUND, "LEASE_UNKNOWN", ("lease_id",)),
        AuditEntryNotFoundError: WireError(_Code.NOT_FOUND, "AUDIT_ENTRY_NOT_FOUND", ("audit_index",)),
        AuditLogCorruptError: WireError(_Code.DATA_LOSS, "AUDIT_LOG_CORRUPT", ("audit_index",)),
        LeaseBoundReachedError: WireError(_Code.RESOURCE_EXHAUSTED, "OVERLOADED"),
        SealedSecretInvalidError: WireError(_Code.INVALID_ARGUMENT, "SEALED_SECRET_INVALID"),
    },
)

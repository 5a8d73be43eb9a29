"""What the use cases need from outside, owned by them. Adapters give it; `tests/contract` holds every adapter to it."""

from keyvault.ports.keyring import KeyringSource, KeyringStore, RootKey
from keyvault.ports.leasing import AppendedLease, AuthorityQuery, AuthorityRows, LeaseGrant, LeaseLog
from keyvault.ports.log import AuditLog, AuthorityChanges, AuthorityFeed
from keyvault.ports.outside import Alarms, Capabilities, ProviderTerms
from keyvault.ports.rows import (
    BindingChange,
    BindingRow,
    FoundBy,
    KeyChange,
    KeyFilter,
    KeyRow,
    PutResult,
    PutStatus,
    SealedVersion,
)
from keyvault.ports.stores import BindingStore, ProviderKeyStore
from keyvault.ports.watchers import WatcherRegistry, WatcherReport

__all__ = [
    "Alarms",
    "AppendedLease",
    "AuditLog",
    "AuthorityChanges",
    "AuthorityFeed",
    "AuthorityQuery",
    "AuthorityRows",
    "BindingChange",
    "BindingRow",
    "BindingStore",
    "Capabilities",
    "FoundBy",
    "KeyChange",
    "KeyFilter",
    "KeyRow",
    "KeyringSource",
    "KeyringStore",
    "LeaseGrant",
    "LeaseLog",
    "ProviderKeyStore",
    "ProviderTerms",
    "PutResult",
    "PutStatus",
    "RootKey",
    "SealedVersion",
    "WatcherRegistry",
    "WatcherReport",
]

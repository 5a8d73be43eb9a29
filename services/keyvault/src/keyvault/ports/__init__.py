"""What the use cases need from outside, owned by them. Adapters give it; `tests/contract` holds every adapter to it."""

from keyvault.ports.erasures import ErasureStore
from keyvault.ports.key_health import ChangedKeys, Claim, KeyCheckStore, NoticeEntry
from keyvault.ports.keyring import (
    ChangeStatus,
    KeyringAdministration,
    KeyringChange,
    KeyringCustody,
    KeyringSource,
    KeyringStore,
    RewrappedRecord,
    RootKey,
)
from keyvault.ports.leasing import AppendedLease, AuthorityQuery, AuthorityRows, LeaseGrant, LeaseLog
from keyvault.ports.log import AuditLog, AuthorityChanges, AuthorityFeed, CorruptionLog, UntoldChange
from keyvault.ports.outside import Alarms, Capabilities, ProviderTerms
from keyvault.ports.row_history import EntryState, RowHistory, RowState
from keyvault.ports.rows import (
    BindingChange,
    BindingRow,
    FoundBy,
    HaltsChange,
    HaltsRow,
    KeyChange,
    KeyFilter,
    KeyRow,
    PutResult,
    PutStatus,
    SealedVersion,
    ShareChange,
    ShareFilter,
    ShareRow,
)
from keyvault.ports.secrets import SecretRow, SecretStore
from keyvault.ports.stores import BindingStore, HaltStore, ProviderKeyStore, ShareStore
from keyvault.ports.tree import AuditTree, LeafFilter, LeafPage, StoredLeaf, TreeState
from keyvault.ports.watchers import WatcherRegistry, WatcherReport

__all__ = [
    "Alarms",
    "AppendedLease",
    "AuditLog",
    "AuditTree",
    "AuthorityChanges",
    "AuthorityFeed",
    "AuthorityQuery",
    "AuthorityRows",
    "BindingChange",
    "BindingRow",
    "BindingStore",
    "Capabilities",
    "ChangeStatus",
    "ChangedKeys",
    "Claim",
    "CorruptionLog",
    "EntryState",
    "ErasureStore",
    "FoundBy",
    "HaltStore",
    "HaltsChange",
    "HaltsRow",
    "KeyChange",
    "KeyCheckStore",
    "KeyFilter",
    "KeyRow",
    "KeyringAdministration",
    "KeyringChange",
    "KeyringCustody",
    "KeyringSource",
    "KeyringStore",
    "LeafFilter",
    "LeafPage",
    "LeaseGrant",
    "LeaseLog",
    "NoticeEntry",
    "ProviderKeyStore",
    "ProviderTerms",
    "PutResult",
    "PutStatus",
    "RewrappedRecord",
    "RootKey",
    "RowHistory",
    "RowState",
    "SealedVersion",
    "SecretRow",
    "SecretStore",
    "ShareChange",
    "ShareFilter",
    "ShareRow",
    "ShareStore",
    "StoredLeaf",
    "TreeState",
    "UntoldChange",
    "WatcherRegistry",
    "WatcherReport",
]

"""What the use cases and workers need from the world, owned by them; adapters give it."""

from metering.ports.accounts import AgentBinder, Directory, Limits, Requests
from metering.ports.admission import AdmissionStore, DueHold, History, HoldExpiry, Outbox, StoreControl
from metering.ports.counters import (
    AccountLoaded,
    AccountMoved,
    AccountReading,
    AccountSnapshot,
    CounterReading,
    CounterStore,
    LoadStarted,
)
from metering.ports.custody import CustodyLog, CustodyWitnesses
from metering.ports.ledger import Ledger, Licences, OwnedPartition, StoreState

__all__ = [
    "AccountLoaded",
    "AccountMoved",
    "AccountReading",
    "AccountSnapshot",
    "AdmissionStore",
    "AgentBinder",
    "CounterReading",
    "CounterStore",
    "CustodyLog",
    "CustodyWitnesses",
    "Directory",
    "DueHold",
    "History",
    "HoldExpiry",
    "Ledger",
    "Licences",
    "Limits",
    "LoadStarted",
    "Outbox",
    "OwnedPartition",
    "Requests",
    "StoreControl",
    "StoreState",
]

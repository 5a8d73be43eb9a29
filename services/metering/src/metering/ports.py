"""What the use cases and workers need from the world."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from metering.domain.accounts import Account, AccountKey, Agent
from metering.domain.enums import Payer
from metering.domain.ledger import LedgerEntry
from metering.domain.licences import Licence, StoreIdentity, Watermark
from metering.domain.limits import Limit
from metering.domain.outbox import FlushBatch, OpenHold, OutboxRecord
from metering.domain.plans import Plan
from metering.domain.policy import Policy
from metering.domain.reservations import (
    ExtendCommand,
    ExtendOutcome,
    Fenced,
    LookupCommand,
    LookupOutcome,
    NeedsAccount,
    NeedsCalendar,
    PriorOperation,
    ReleaseCommand,
    ReleaseOutcome,
    ReserveCommand,
    ReserveOutcome,
    SettleCommand,
    SettleOutcome,
)
from metering.domain.usage import UsageQuery, UsageSummary
from metering.domain.windows import Calendar
from servicekit.errors import DomainError


class History(msgspec.Struct, frozen=True):
    """What Postgres was found to know of an operation; `operation` is None if nothing."""

    operation: PriorOperation | None


class AdmissionStore(Protocol):
    """Holds, settlements, releases: each command is one atomic step.

    Outcomes come in the order of the commands. An outcome that is an error says that it is not known whether that
    command was applied; repeating it is safe. Every method raises DependencyUnavailableError when nothing of the batch
    was applied.
    """

    async def reserve(
        self, commands: Sequence[ReserveCommand], licence: Licence, *, histories: Mapping[int, History] | None = None
    ) -> list[ReserveOutcome | DomainError]:
        """Hold the worst case of each call on every limit that applies; `histories` by index, where asked for."""
        ...

    async def settle(
        self, commands: Sequence[SettleCommand], licence: Licence, *, histories: Mapping[int, History] | None = None
    ) -> list[SettleOutcome | DomainError]:
        """Put the truth in the place of each hold."""
        ...

    async def release(self, commands: Sequence[ReleaseCommand], licence: Licence) -> list[ReleaseOutcome | DomainError]:
        """Give holds back."""
        ...

    async def extend(self, commands: Sequence[ExtendCommand], licence: Licence) -> list[ExtendOutcome | DomainError]:
        """Keep holds longer."""
        ...

    async def lookup(self, command: LookupCommand, licence: Licence) -> LookupOutcome:
        """Tell how far an operation has come."""
        ...


class LoadStarted(msgspec.Struct, frozen=True):
    """Admission of the account stands still; what was written for it so far ends at this sequence."""

    now_ms: int
    sequence: int


class AccountLoaded(msgspec.Struct, frozen=True):
    """The account is in Redis at this version."""

    version: int


class AccountMoved(msgspec.Struct, frozen=True):
    """Something was written for the account since the fold began."""

    sequence: int


class AccountSnapshot(msgspec.Struct, frozen=True):
    """All that Redis must know of an account: its limits, and what the ledger counts in each one's current window."""

    account: AccountKey
    version: int
    # The account's last sequence that the fold covers.
    sequence: int
    calendar: Calendar
    plan: bytes
    # With what is settled in the limit's window at the time of the fold.
    counters: tuple[tuple[Limit, int, int, int], ...]


class CounterReading(msgspec.Struct, frozen=True):
    """One limit's window as Redis has it. `counted` includes held and suspense."""

    limit_id: str
    start: int
    end: int
    counted: int
    held: int
    suspense: int


class AccountReading(msgspec.Struct, frozen=True):
    """What is used of an account's limits at a time."""

    now_ms: int
    version: int
    # Of the last record that was written for the account.
    sequence: int
    counters: tuple[CounterReading, ...]


class CounterStore(Protocol):
    """The accounts in Redis. Every method raises DependencyUnavailableError."""

    async def begin_load(
        self, account: AccountKey, licence: Licence, *, version: int, stand_still_ms: int
    ) -> LoadStarted | AccountLoaded | Fenced:
        """Stop admission of an account for a moment, unless it has this version already."""
        ...

    async def load(self, snapshot: AccountSnapshot, licence: Licence) -> AccountLoaded | AccountMoved | Fenced:
        """Give an account its limits and counters, if nothing was written for it since the fold."""
        ...

    async def roll(self, account: AccountKey, licence: Licence, calendar: Calendar) -> None:
        """Give an account the calendar of a new day or month; an older one changes nothing."""
        ...

    async def read(
        self, account: AccountKey, licence: Licence
    ) -> AccountReading | NeedsAccount | NeedsCalendar | Fenced:
        """Read what is used of an account's limits now."""
        ...


class Outbox(Protocol):
    """What scripts wrote and Postgres does not have yet. Every method raises DependencyUnavailableError."""

    async def read(self, positions: Sequence[Watermark], *, count: int) -> list[OutboxRecord]:
        """Return records after each position, at most `count` a partition, in order of sequence."""
        ...

    async def trim(self, positions: Sequence[Watermark]) -> None:
        """Forget records up to each position."""
        ...

    async def backlog(self, positions: Sequence[Watermark]) -> dict[int, int]:
        """Return how many records each partition has after its position."""
        ...


class DueHold(msgspec.Struct, frozen=True):
    """A hold that may be due."""

    reservation_id: str
    account: AccountKey


class HoldExpiry(Protocol):
    """Holds whose time is over. Every method raises DependencyUnavailableError."""

    async def due(self, licence: Licence, partitions: Sequence[int], *, count: int) -> list[DueHold]:
        """Return holds that are due, at most `count` a partition."""
        ...

    async def expire(self, holds: Sequence[DueHold], licence: Licence, *, follows: bool = False) -> list[Payer | None]:
        """Move each hold on, and return who pays for it if it moved; `follows` also moves one that is not due yet."""
        ...

    async def prune(self, licence: Licence, partitions: Sequence[int], *, before_ms: Mapping[int, int]) -> int:
        """Forget operation records that nothing wrote to since a time, and whose hour is over since before it."""
        ...


class StoreControl(Protocol):
    """The store as a whole. Every method raises DependencyUnavailableError."""

    async def identity(self) -> StoreIdentity:
        """Return whom the connection is to."""
        ...

    async def ensure_keeps_everything(self) -> None:
        """Check that the server never evicts keys on its own.

        Raises:
            EvictingStoreError: Its eviction policy is another than noeviction.
        """
        ...

    async def memory_used(self) -> float:
        """Return the part of the allowed memory that is in use; 0 without a bound."""
        ...

    async def is_open(self, licence: Licence) -> bool:
        """Tell whether every partition is at its generation."""
        ...

    async def restore(
        self,
        generations: Mapping[int, int],
        *,
        seen_ms: Mapping[int, int],
        operations: Sequence[PriorOperation],
        holds: Sequence[OpenHold],
    ) -> None:
        """Put holds and operation records of new generations in place, then begin these generations."""
        ...

    async def drop_other_generations(self, generations: Mapping[int, int]) -> None:
        """Delete what other generations left behind."""
        ...


class Directory(Protocol):
    """Accounts, agents, plans, policy. Every method raises DependencyUnavailableError."""

    async def find_agent(self, agent_id: str) -> Agent | None:
        """Return an agent."""
        ...

    async def list_agents(self, *, owner_id: str, after: str, count: int) -> list[Agent]:
        """Return agents of an owner by id, those after an id."""
        ...

    async def register_agent(self, agent: Agent, *, cap: Limit | None, time_zone: str) -> None:
        """Write an agent, and its account with its first limit if that is new. The same again changes nothing.

        Raises:
            AgentAlreadyRegisteredError: It is registered under another account or owner.
            PlanLimitReachedError: The account's plan allows no more agents.
        """
        ...

    async def find_account(self, account: AccountKey) -> Account | None:
        """Return an account."""
        ...

    async def count_agents(self, account: AccountKey) -> int:
        """Return how many agents are registered under an account."""
        ...

    async def is_owner_of(self, account: AccountKey, owner_id: str) -> bool:
        """Tell whether an owner has an agent under an account."""
        ...

    async def find_plan(self, name: str) -> Plan:
        """Return a plan."""
        ...

    async def policy(self) -> Policy:
        """Return what the platform pays for."""
        ...


class Limits(Protocol):
    """Limits as they were set. Every method raises DependencyUnavailableError."""

    async def list_limits(self, account: AccountKey) -> list[Limit]:
        """Return all limits of an account."""
        ...

    async def set_limit(self, limit: Limit, *, etag: str) -> Limit:
        """Write a limit under a new config version of its account; the same amount again changes nothing.

        Raises:
            AccountNotFoundError: There is no such account.
            EtagMismatchError: `etag` is set and is not the limit's.
            InvalidArgumentError: The scope has as many limits as one may, or the default cap would stop nothing.
        """
        ...

    async def remove_limit(self, account: AccountKey, limit_id: str) -> int:
        """Remove a limit under a new config version, and return that version.

        Raises:
            LimitNotFoundError: There is none.
        """
        ...

    async def unapplied(self, *, count: int) -> list[AccountKey]:
        """Return accounts whose config version is not known to have reached Redis."""
        ...

    async def mark_applied(self, account: AccountKey, version: int) -> None:
        """Record that Redis has a version."""
        ...


class Requests(Protocol):
    """Answers of mutations by request id. Every method raises DependencyUnavailableError."""

    async def claim(self, rpc: str, scope: str, request_id: str, *, body_hash: bytes) -> tuple[bytes, bytes | None]:
        """Tie the id to a body, unless it is; return the body hash that it is tied to, and the answer if there is one.

        Of two bodies that come at the same moment, one is told the other's hash.
        """
        ...

    async def keep(self, rpc: str, scope: str, request_id: str, *, answer: bytes) -> None:
        """Keep the answer to a claimed request; the first one stands."""
        ...


class Ledger(Protocol):
    """The truth. Every method raises DependencyUnavailableError."""

    async def commit(self, batch: FlushBatch) -> int:
        """Write a batch in one transaction and return how many entries were new.

        Raises:
            FencedFlushError: A partition is another's by now, or has moved.
        """
        ...

    async def watermarks(self) -> list[Watermark]:
        """Return how far each partition is."""
        ...

    async def fold(self, account: AccountKey, limits: Sequence[tuple[Limit, int, int]]) -> list[int]:
        """Return what each limit's window, between these minutes, counts in the ledger, posted suspense included."""
        ...

    async def find_operation(self, request_id: str, account: AccountKey) -> PriorOperation | None:
        """Return what is known of an operation."""
        ...

    async def outcome(self, request_id: str, account: AccountKey, attempts: int) -> tuple[list[LedgerEntry], bytes]:
        """Return the settlements of a closed operation and the sealed answer, if it is still kept."""
        ...

    async def summarize(self, query: UsageQuery) -> UsageSummary:
        """Sum the ledger, with what is held and in suspense."""
        ...

    async def list_entries(self, query: UsageQuery, *, after: str, count: int) -> list[LedgerEntry]:
        """Return entries, newest first, those after a position."""
        ...

    async def open_holds(self, partitions: Sequence[int]) -> list[OpenHold]:
        """Return holds and suspense of partitions."""
        ...

    async def recent_operations(self, *, since: datetime) -> list[PriorOperation]:
        """Return operations with entries whose ids were made since a time."""
        ...

    async def durable_times(self) -> dict[int, int]:
        """Return up to which time (ms) each partition's records are in the ledger."""
        ...

    async def prepare_partitions(self, now: datetime) -> None:
        """Make the tables that the ids of the next weeks go into."""
        ...

    async def forget_answers(self, now: datetime) -> None:
        """Delete answers that are kept no longer."""
        ...


class StoreState(msgspec.Struct, frozen=True):
    """What Postgres says of Redis."""

    identity: StoreIdentity | None
    generations: tuple[int, ...]
    # Counts rebuilds: whoever finds Redis lost names the epoch in which it looked.
    epoch: int
    is_rebuilding: bool


class OwnedPartition(msgspec.Struct, frozen=True):
    """A partition that this replica flushes, under a fence that rises with every change of owner."""

    partition: int
    generation: int
    fence: int
    sequence: int


class Licences(Protocol):
    """Licences, generations and owners of partitions. Every method raises DependencyUnavailableError."""

    async def state(self) -> StoreState:
        """Return what Redis should be."""
        ...

    async def renew(self, replica: str, identity: StoreIdentity, *, life_ms: int) -> Licence | None:
        """Renew a licence on an identity; None when that is not the one in force."""
        ...

    async def give_back(self, replica: str) -> None:
        """End this replica's licence now, so that a rebuild does not wait for it."""
        ...

    async def begin_rebuild(self, replica: str, *, epoch: int, life_ms: int) -> bool:
        """Become, or stay, the one that rebuilds; False while another replica does, or if the epoch has passed."""
        ...

    async def take_all_partitions(self, replica: str) -> list["OwnedPartition"]:
        """Own every partition, fencing every flusher.

        Raises:
            FencedFlushError: Another replica has taken the rebuild over.
        """
        ...

    async def unexpired(self) -> int:
        """Return how many licences still run."""
        ...

    async def begin_generation(self, replica: str) -> tuple[dict[int, int], dict[int, int]]:
        """Move every partition to a new generation and the store to a new epoch; return generations, times seen (ms).

        Raises:
            FencedFlushError: Another replica has taken the rebuild over.
        """
        ...

    async def end_rebuild(self, replica: str, identity: StoreIdentity) -> None:
        """Open admission on an identity.

        Raises:
            FencedFlushError: Another replica has taken the rebuild over.
        """
        ...

    async def own_partitions(self, replica: str, *, silent_after: timedelta) -> list[OwnedPartition]:
        """Take this replica's share of partitions, leave what is too much, and return what it owns.

        Replicas that have not asked for so long own nothing any more; whatever they still believe, they are fenced.
        """
        ...


class AgentBinder(Protocol):
    """KeyVault's bindings of agents."""

    async def bind(self, *, request_id: str, actor: str, agent_id: str, owner_id: str, account: AccountKey) -> int:
        """Bind an agent to its owner and account, and return the authority index. The same again changes nothing.

        Raises:
            AgentAlreadyRegisteredError: It is bound to another owner or account.
            DependencyUnavailableError: KeyVault cannot be reached.
        """
        ...

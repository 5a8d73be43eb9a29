"""What an operator sets of KeyVault. Environment: `BYOK_KEYVAULT_…`, nested by `__`."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from servicekit.settings import (
    Duration,
    PositiveDuration,
    ServerSettings,
    ServiceSettings,
    SettingsGroup,
)

HostAndPort = Annotated[str, Field(pattern=r"^(\[[0-9a-f:.]+\]|[a-z0-9._-]+):\d{1,5}$")]


class PostgresSettings(SettingsGroup):
    """The database of this service, and of no other."""

    dsn: SecretStr
    """Where it is, with the password; a pooler in transaction mode may stand before it."""
    session_dsn: SecretStr | None = None
    """Where a session can be had, for LISTEN, when `dsn` names a pooler. Unset: `dsn`."""
    serving_role: Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")] | None = None
    """The role that `serve` connects as; `migrate`, run by the schema's owner, grants it what it needs and no more."""
    pool_min: Annotated[int, Field(ge=1)] = 2
    pool_max: Annotated[int, Field(ge=1, le=200)] = 8
    """Connections of one replica; replicas × this must fit into max_connections."""
    connect_timeout: PositiveDuration = timedelta(seconds=10)
    statement_timeout: PositiveDuration = timedelta(seconds=10)
    """After this a statement is given up, and what it would have appended counts as not durable."""
    listen_retry: PositiveDuration = timedelta(seconds=1)
    """Pause before LISTEN is tried on a new connection."""


class RootKeySettings(SettingsGroup):
    """The key that wraps the keyring."""

    file: Path
    """A file of 64 hex digits that only its owner and group can read."""


class LeaseSettings(SettingsGroup):
    """How keys are leased."""

    life: Annotated[PositiveDuration, Field(le=timedelta(minutes=5))] = timedelta(seconds=60)
    """How long a lease may be used; at most 5 minutes."""
    distinct_keys_per_minute_max: Annotated[int, Field(ge=1)] = 10_000
    """Distinct keys that one caller may lease within a minute on one replica; beyond it: OVERLOADED, and an alarm."""
    calls_per_batch_max: Annotated[int, Field(ge=1, le=1024)] = 32
    """AcquireLeases calls that share one reading and one append."""
    calls_queued_max: Annotated[int, Field(ge=1)] = 2_000
    """AcquireLeases calls that may wait for a batch; beyond it: OVERLOADED."""
    batches_in_flight_max: Annotated[int, Field(ge=1, le=8)] = 2
    linger_max: Duration = timedelta(milliseconds=2)
    """How long a call may wait for company while batches are in flight."""


class RevocationSettings(SettingsGroup):
    """How fast a revocation is in force everywhere."""

    partition_bound: PositiveDuration = timedelta(seconds=3)
    """How long a Router that cannot reach KeyVault goes on with what it cached. An operator who prefers availability
    through a failover of the database to a fast revocation may raise it up to the life of a lease."""
    poll: Annotated[PositiveDuration, Field(le=timedelta(milliseconds=250))] = timedelta(milliseconds=250)
    """How often the log is read for changes when no notification comes."""
    acknowledgement_poll: PositiveDuration = timedelta(milliseconds=20)
    """How often RevokeKey looks whether all watchers have acknowledged."""
    watch_queue_max: Annotated[int, Field(ge=100)] = 10_000
    watchers_max: Annotated[int, Field(ge=1)] = 1_000


class KeySettings(SettingsGroup):
    """Provider keys."""

    per_account_max: Annotated[int, Field(ge=1, le=1000)] = 100
    """Keys of one account that are not revoked."""
    rate_limited_rest: PositiveDuration = timedelta(seconds=5)
    """How long a throttled key rests when the provider does not say."""
    quota_exhausted_rest: PositiveDuration = timedelta(minutes=15)
    """How long a key rests whose daily quota is used up, when the provider does not say."""
    rejection_grace: PositiveDuration = timedelta(seconds=60)
    """How long a provider must reject a working key's calls, without one success, until it is INVALID without a test
    call; shorter than a vendor's worst fault, and every key is out of use after it."""


class Settings(ServiceSettings):
    """Everything."""

    model_config = SettingsConfigDict(env_prefix="BYOK_KEYVAULT_")

    server: ServerSettings
    postgres: PostgresSettings
    root_key: RootKeySettings
    deployment: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Name of this deployment. It is bound into every envelope: set it once, and never change it."""
    migrate_on_start: bool = False
    """Whether `serve` applies migrations; in production the command `migrate` does, under a role of its own."""
    allowed_private_hosts: tuple[HostAndPort, ...] = ()
    """`host:port` of base URLs that are exempt from the rules on private names, addresses, http and fixed hosts."""
    leases: LeaseSettings = LeaseSettings()
    revocation: RevocationSettings = RevocationSettings()
    keys: KeySettings = KeySettings()
    housekeeping_interval: PositiveDuration = timedelta(seconds=30)
    """How often canaries are opened and old request ids forgotten."""

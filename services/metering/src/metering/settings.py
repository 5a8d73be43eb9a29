"""What an operator may set. Environment names begin with BYOK_METERING_, nested by two underscores."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from servicekit.settings import PeerSettings, PositiveDuration, ServerSettings, ServiceSettings, SettingsGroup
from transparency.notes import parse_verifier_key


class PostgresSettings(SettingsGroup):
    """The database of accounts, limits, licences and the ledger."""

    dsn: SecretStr
    """May hold a password."""
    pool_max: Annotated[int, Field(ge=2)] = 8
    """Connections of one replica; replicas × this must fit into the server's `max_connections`."""
    command_timeout: PositiveDuration = timedelta(seconds=10)
    acquire_timeout: PositiveDuration = timedelta(seconds=2)


class Durability(StrEnum):
    """What the operator says of how Redis keeps what it was told; the README names each one's loss bound."""

    AOF = "aof"
    REPLICATED = "replicated"
    DURABLE_LOG = "durable_log"


class RedisSettings(SettingsGroup):
    """The store of counters, holds and the outbox."""

    url: SecretStr
    """May hold a password. `redis://`, `rediss://` or `unix://`."""
    durability: Durability = Durability.AOF
    connect_timeout: PositiveDuration = timedelta(seconds=2)
    reply_timeout: PositiveDuration = timedelta(seconds=2)
    memory_max: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Part of `maxmemory` from which reserves are refused; settlements keep the rest."""


class LicenceSettings(SettingsGroup):
    """How long this replica may admit without word from Postgres."""

    life: PositiveDuration = timedelta(seconds=30)
    """Long rides out a failover of Postgres; short lets a rebuild begin sooner after a replica died."""
    renew: PositiveDuration = timedelta(seconds=5)


class FlushSettings(SettingsGroup):
    """How the outbox becomes the ledger."""

    idle_interval: PositiveDuration = timedelta(milliseconds=50)
    records_max: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    """Of one partition in one transaction."""
    backlog_max: Annotated[int, Field(ge=1)] = 200_000
    """Records waiting in the partitions of this replica from which reserves are refused."""


class ExpirySettings(SettingsGroup):
    """Holds whose time is over."""

    interval: PositiveDuration = timedelta(seconds=1)
    prune_interval: PositiveDuration = timedelta(minutes=5)


class DirectorySettings(SettingsGroup):
    """What is remembered of agents and policy."""

    fresh: PositiveDuration = timedelta(seconds=30)
    entries_max: Annotated[int, Field(ge=1)] = 100_000


class CustodySettings(SettingsGroup):
    """How KeyVault's audit log is witnessed."""

    verifier_keys: tuple[str, ...] = ()
    """C2SP verifier keys of KeyVault's checkpoints. Named here, no other is ever trusted; else the first one seen is,
    and those that it vouches for."""
    read_interval: PositiveDuration = timedelta(seconds=1)
    """How often any of the replicas reads the log. What it loses of the time since then is not found missing."""
    look_interval: PositiveDuration = timedelta(milliseconds=500)
    """How often a replica looks for what another one has found."""
    call_timeout: PositiveDuration = timedelta(seconds=3)
    alarm_after: PositiveDuration = timedelta(seconds=60)
    """After so long without a log that can be read, it is logged as an error, and again each time it has passed."""

    @field_validator("verifier_keys")
    @classmethod
    def _can_be_read(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        for key in keys:
            parse_verifier_key(key)
        return keys


class DefaultsSettings(SettingsGroup):
    """What new accounts start with."""

    daily_cost_cap_nano_usd: Annotated[int, Field(ge=0, le=2**53 - 1)] = 1_000_000_000
    """Counts all operations on the owner's and the organization's keys. Owners can raise it, not remove it."""
    plan: str = "free"


class Settings(ServiceSettings):
    """Metering's settings."""

    model_config = SettingsConfigDict(env_prefix="BYOK_METERING_")

    server: ServerSettings
    postgres: PostgresSettings
    redis: RedisSettings
    keyvault: PeerSettings
    licence: LicenceSettings = LicenceSettings()
    flush: FlushSettings = FlushSettings()
    expiry: ExpirySettings = ExpirySettings()
    directory: DirectorySettings = DirectorySettings()
    custody: CustodySettings = CustodySettings()
    defaults: DefaultsSettings = DefaultsSettings()
    migrate_on_start: bool = False
    """For the demo: in production `python -m metering migrate` runs before a release."""

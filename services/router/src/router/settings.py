"""What an operator sets of the Router. Environment: `BYOK_ROUTER_…`, nested by `__`."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from servicekit.settings import (
    Duration,
    PeerSettings,
    PositiveDuration,
    ServerSettings,
    ServiceSettings,
    SettingsGroup,
)

HostAndPort = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):\d{1,5}$")]
Count = Annotated[int, Field(ge=1)]


class KeyVaultSettings(PeerSettings):
    """KeyVault, and how leases are kept."""

    lease_timeout: PositiveDuration = timedelta(seconds=2)
    """For one batch of leases."""
    report_timeout: PositiveDuration = timedelta(seconds=5)
    """For one batch of outcomes."""
    lease_batch_max: Annotated[int, Field(ge=1, le=256)] = 128
    """Leases asked for in one call."""
    outcome_batch_max: Annotated[int, Field(ge=1, le=1024)] = 512
    """Outcomes told in one call."""
    outcome_linger: PositiveDuration = timedelta(milliseconds=250)
    """How long an outcome waits for company."""
    queue_max: Count = 10_000
    """Leases or outcomes that may wait; beyond it calls are refused and outcomes dropped."""
    cached_max: Count = 20_000
    """Leases and "no key" answers kept."""
    contact_wait: Duration = timedelta(seconds=1)
    """How long a call waits for the watch on revocations before it is refused."""
    sweep_interval: PositiveDuration = timedelta(seconds=1)
    """How often leases that have ended are let go of, and their secrets overwritten."""
    late_leases_max: Count = 3
    """How often a lease may arrive that a newer change has ended already."""
    ping_interval: PositiveDuration = timedelta(seconds=1)
    """How often contact is proved."""
    silence_max: PositiveDuration = timedelta(seconds=2)
    """After this without an echo another watch is opened; below KeyVault's partition bound, contact does not lapse."""
    reconnect_delay: PositiveDuration = timedelta(milliseconds=200)
    """Pause before a broken watch is opened anew."""


class MeteringSettings(PeerSettings):
    """Metering, and how settlements are kept until they are durable."""

    call_timeout: PositiveDuration = timedelta(seconds=3)
    """For one batch."""
    settle_wait: PositiveDuration = timedelta(milliseconds=50)
    """How long an answer waits for its settlement before it goes out as PENDING."""
    reserve_tries: Annotated[int, Field(ge=1, le=5)] = 2
    """How often a reservation is sent when no answer comes."""
    resend_interval: PositiveDuration = timedelta(milliseconds=500)
    """How often undurable settlements are looked after."""
    journal_max: Count = 100_000
    """Undurable settlements and open holds together; at the bound new work is refused."""
    batch_max: Annotated[int, Field(ge=1, le=256)] = 256
    """Reserves and settlements in one batch."""
    queue_max: Count = 10_000
    """Reserves and settlements that may wait for a batch."""
    batches_in_flight_max: Annotated[int, Field(ge=1, le=8)] = 2
    """Batches under way at once."""
    linger_max: Duration = timedelta(milliseconds=8)
    """How long an item waits for company while batches are under way."""


class EgressSettings(SettingsGroup):
    """How providers are reached."""

    allowed_hosts: tuple[HostAndPort, ...] = ()
    """`host:port` entries that may use http and private addresses, such as an Ollama of your own."""
    extra_ca_file: Path | None = None
    """More certificate authorities that providers' certificates are checked against."""
    connect_timeout: PositiveDuration = timedelta(seconds=5)
    """For one connection attempt."""
    attempt_timeout: PositiveDuration = timedelta(seconds=120)
    """For one provider call; the caller's deadline may make it less."""
    answer_bytes_max: Count = 32 * 1024 * 1024
    """The largest answer that is read."""
    connections_max: Count = 2_000
    """Connections to all providers of one host policy."""
    connections_per_host_max: Count = 1_000
    """Connections to one host."""
    idle_timeout: PositiveDuration = timedelta(seconds=30)
    """How long an unused connection is kept."""


class RetrySettings(SettingsGroup):
    """When provider calls are tried again."""

    tries_max: Annotated[int, Field(ge=1, le=10)] = 3
    """Tries of one call that nothing was billed for."""
    delay_min: PositiveDuration = timedelta(milliseconds=250)
    """The first pause where the vendor names none; it doubles."""
    delay_max: PositiveDuration = timedelta(seconds=4)
    """The longest pause: a vendor that asks for more is not waited for."""
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of a pause that is drawn at random and added."""
    attempts_max: Annotated[int, Field(ge=1, le=20)] = 4
    """Attempts of one question over all keys, those on new holds included."""
    candidates_max: Annotated[int, Field(ge=1, le=20)] = 4
    """Keys tried for one question."""
    lease_losses_max: Annotated[int, Field(ge=1, le=20)] = 3
    """How often a lease may end before its first byte."""
    attempt_pause: Duration = timedelta(milliseconds=100)
    """Between an attempt that may have been billed and the next one on the same key; it grows with each."""
    settle_margin: PositiveDuration = timedelta(milliseconds=80)
    """Kept free at the end of a call's deadline, to settle and to answer."""


class HoldSettings(SettingsGroup):
    """How long holds stand without word from this process."""

    margin: PositiveDuration = timedelta(seconds=60)
    """Beyond the call's deadline."""
    ttl_max: Annotated[PositiveDuration, Field(le=timedelta(minutes=15))] = timedelta(minutes=15)
    """At most."""


class DueKeySettings(SettingsGroup):
    """Test calls of keys that KeyVault says are due."""

    keys_max: Annotated[int, Field(ge=0, le=64)] = 16
    """Keys tested at once by this process; 0 leaves it to others."""
    first_pause: PositiveDuration = timedelta(seconds=10)
    """After the start, before the first claim."""
    pause_after_refusal: PositiveDuration = timedelta(minutes=1)
    """When KeyVault hands out no keys; otherwise it says when to ask again."""
    timeout: PositiveDuration = timedelta(seconds=60)
    """For the test of one key; below KeyVault's life of a claim."""


class PriceSettings(SettingsGroup):
    """An operator's own price of one model, in USD per million tokens."""

    provider: str
    model: str
    input_usd: Annotated[Decimal, Field(ge=0)]
    output_usd: Annotated[Decimal, Field(ge=0)]
    cache_read_usd: Annotated[Decimal, Field(ge=0)] | None = None
    cache_write_usd: Annotated[Decimal, Field(ge=0)] | None = None


class Settings(ServiceSettings):
    """All settings of the Router."""

    model_config = SettingsConfigDict(env_prefix="BYOK_ROUTER_")

    server: ServerSettings
    keyvault: KeyVaultSettings
    metering: MeteringSettings
    answer_key_file: Path
    """32 bytes in hexadecimal, the same for all Routers and for nobody else: kept answers are encrypted under it."""
    egress: EgressSettings = EgressSettings()
    retry: RetrySettings = RetrySettings()
    hold: HoldSettings = HoldSettings()
    due_keys: DueKeySettings = DueKeySettings()
    prices: tuple[PriceSettings, ...] = ()
    """Prices that come before the catalogue's."""
    embedding_request_bytes_max: Count = 64 * 1024 * 1024
    """The largest GenerateEmbeddings request."""

"""What an operator sets of KeyVault. Environment: `BYOK_KEYVAULT_…`, nested by `__`."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
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


_VaultPath = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$", max_length=256)
]


class Pkcs11Settings(SettingsGroup):
    """A root key on a PKCS#11 token: a hardware security module, or a software one."""

    module: Path
    """The module of the token's vendor, a shared library."""
    token_label: Annotated[str, Field(min_length=1, max_length=32)]
    token_serial: Annotated[str, Field(min_length=1, max_length=16)] | None = None
    """Needed when several tokens have the label."""
    key_label: Annotated[str, Field(min_length=1, max_length=128)]
    """The label of an AES-256 key that is sensitive and not extractable."""
    pin_file: Path
    """A file with the user PIN, readable by its owner and group only."""
    iv_source: Literal["caller", "token"] = "caller"
    """Who draws the IV of AES-GCM: `token` for modules in FIPS mode that insist on it."""


class AwsKmsSettings(SettingsGroup):
    """A root key in AWS KMS. Credentials come from the machine: a role, or what else the default chain finds."""

    key_arn: Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{12}:key/[A-Za-z0-9-]+$")]
    """The ARN of a symmetric key for ENCRYPT_DECRYPT; an alias is refused, because it can be pointed elsewhere."""
    endpoint_url: str | None = None
    """Where KMS is, when that is not the Region's public endpoint: a VPC or FIPS endpoint."""


class VaultTransitSettings(SettingsGroup):
    """A root key in the transit engine of HashiCorp Vault (1.13 or later) or OpenBao."""

    address: Annotated[str, Field(pattern=r"^(https://[^/?#@]+|http://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?)/?$")]
    """`https://host:port`; plain http is for an agent on this machine."""
    namespace: _VaultPath | None = None
    mount: _VaultPath = "transit"
    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=128)]
    ca_file: Path | None = None
    """The authority of the server's certificate, when the machine does not know it."""
    auth: Literal["token", "approle", "kubernetes"] = "token"
    auth_mount: _VaultPath | None = None
    """Where the auth method is mounted. Unset: at its own name."""
    token_file: Path | None = None
    """For `token`: a file that an agent keeps fresh."""
    role: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """For `approle` the role id, for `kubernetes` the name of the role."""
    secret_id_file: Path | None = None
    """For `approle`."""
    jwt_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    """For `kubernetes`: the service account's token."""

    @model_validator(mode="after")
    def _needs_what_it_logs_in_with(self) -> Self:
        needed: dict[str, dict[str, object]] = {
            "token": {"token_file": self.token_file},
            "approle": {"role": self.role, "secret_id_file": self.secret_id_file},
            "kubernetes": {"role": self.role},
        }
        missing = ", ".join(name for name, value in needed[self.auth].items() if value is None)
        if missing:
            message = f"auth {self.auth} needs {missing}"
            raise ValueError(message)
        return self


class RootKeySettings(SettingsGroup):
    """A key that wraps the keyring: which provider keeps it, and that provider's own group."""

    provider: Literal["file", "pkcs11", "aws_kms", "vault_transit"] = "file"
    file: Path | None = None
    """A file of 64 hex digits that only its owner and group can read."""
    pkcs11: Pkcs11Settings | None = None
    aws_kms: AwsKmsSettings | None = None
    vault_transit: VaultTransitSettings | None = None
    timeout: Annotated[PositiveDuration, Field(le=timedelta(minutes=1))] = timedelta(seconds=5)
    """How long the provider may take to answer one attempt."""
    attempts_max: Annotated[int, Field(ge=1, le=10)] = 3
    """How often a provider that is away is asked before this service gives up, at its start for one."""

    @model_validator(mode="after")
    def _has_the_group_of_its_provider_alone(self) -> Self:
        groups = {
            "file": self.file,
            "pkcs11": self.pkcs11,
            "aws_kms": self.aws_kms,
            "vault_transit": self.vault_transit,
        }
        found = [name for name, group in groups.items() if group is not None]
        if found != [self.provider]:
            message = f"provider {self.provider} needs {self.provider}, and no other group beside it"
            raise ValueError(message)
        return self


class KeyringSettings(SettingsGroup):
    """The keyring and the replicas that use it."""

    heartbeat: PositiveDuration = timedelta(seconds=2)
    """How often a replica reads the keyring if it changed, and says what of it it can use."""
    replica_bound: PositiveDuration = timedelta(seconds=15)
    """A replica that was not seen for this long has no say in promotions; when it comes back it must reload first."""
    rewrap_batch: Annotated[int, Field(ge=1, le=5_000)] = 500
    """DEKs that the process `rewrap` stores at once; leases wait for none of them."""
    rewrap_claim: PositiveDuration = timedelta(seconds=10)
    """A process that rewraps and says nothing for this long is taken for dead, and another one goes on."""


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
    handover: PositiveDuration = timedelta(seconds=2)
    """How long a watch goes on that its Router was asked to replace: because its connection is too old, or because
    this process ends, which waits for it."""
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


class HealthSettings(SettingsGroup):
    """Test calls, expiry, erasures, and the workers that look whether what is stored is what was written."""

    interval: PositiveDuration = timedelta(seconds=10)
    """How often it is looked which keys are due, have expired or are to be revoked with their erased owner."""
    batch_max: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Keys that one look takes."""
    claim_life: PositiveDuration = timedelta(minutes=2)
    """How long a claimed key is nobody else's; after it, a test call that was not reported is due again."""
    claims_per_minute_max: Annotated[int, Field(ge=1)] = 600
    """Test calls of all providers; keys that are due beyond it wait."""
    claims_per_provider_and_minute_max: Annotated[int, Field(ge=1)] = 120
    check_interval: PositiveDuration = timedelta(days=1)
    """How often a working key is tested, and the longest between two tests of one that does not work."""
    expiry_notices: Annotated[tuple[PositiveDuration, ...], Field(min_length=1, max_length=8)] = (
        timedelta(days=14),
        timedelta(days=1),
    )
    """How long before a key expires its owner is told."""
    walk_interval: PositiveDuration = timedelta(minutes=1)
    """Between two passes of the workers that unwrap every wrapped DEK and compare every authority row with the log."""
    walk_pause: PositiveDuration = timedelta(seconds=1)
    """Between two batches of one pass."""
    walk_batch_max: Annotated[int, Field(ge=1, le=10_000)] = 200


class AuditSettings(SettingsGroup):
    """The tree over the audit log, and who reads it."""

    checkpoint_interval: PositiveDuration = timedelta(seconds=1)
    """How often new entries become part of the signed tree; sooner when a caller asks for one that is not."""
    checkpoints_kept: PositiveDuration = timedelta(days=30)
    """How long checkpoints are kept that are not the newest; proofs need none of them."""
    accepted_leaves: tuple[Annotated[str, Field(pattern=r"^[1-9]\d{0,18}:[0-9a-f]{64}$")], ...] = ()
    """`index:hash` of entries that fail their check, and that an operator who has looked wants signed as they stand
    (docs/runbooks/audit-log-corrupt.md)."""
    feed_wait: Annotated[PositiveDuration, Field(le=timedelta(minutes=1))] = timedelta(seconds=20)
    """How long ReadFeed waits for news."""
    feed_poll: PositiveDuration = timedelta(seconds=1)
    """How often a waiting ReadFeed looks when no notification comes."""

    @property
    def accepted(self) -> dict[int, bytes]:
        """Return the accepted hashes by index."""
        pairs = [each.split(":") for each in self.accepted_leaves]
        return {int(index): bytes.fromhex(digest) for index, digest in pairs}


class Settings(ServiceSettings):
    """Everything."""

    model_config = SettingsConfigDict(env_prefix="BYOK_KEYVAULT_")

    server: ServerSettings
    postgres: PostgresSettings
    root_key: RootKeySettings
    """The key that wraps the keyring."""
    next_root_key: RootKeySettings | None = None
    """The root key that a rotation goes to. While both are set, either opens what it wrapped."""
    deployment: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Name of this deployment. It is bound into every envelope: set it once, and never change it."""
    migrate_on_start: bool = False
    """Whether `serve` applies migrations; in production the command `migrate` does, under a role of its own."""
    allowed_private_hosts: tuple[HostAndPort, ...] = ()
    """`host:port` of base URLs that are exempt from the rules on private names, addresses, http and fixed hosts."""
    keyring: KeyringSettings = KeyringSettings()
    leases: LeaseSettings = LeaseSettings()
    revocation: RevocationSettings = RevocationSettings()
    keys: KeySettings = KeySettings()
    health: HealthSettings = HealthSettings()
    audit: AuditSettings = AuditSettings()
    housekeeping_interval: PositiveDuration = timedelta(seconds=30)
    """How often canaries are opened and old request ids forgotten."""

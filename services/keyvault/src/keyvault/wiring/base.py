"""What every part of this service stands on: settings, clock, database, keyring, verified rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from catalogue.book import load_catalogue
from keyvault.adapters.catalogue_capabilities import CatalogueCapabilities
from keyvault.adapters.metric_alarms import MetricAlarms
from keyvault.adapters.postgres.authority import PostgresAuthority
from keyvault.adapters.postgres.feed import PostgresFeed, PostgresWatcherRegistry
from keyvault.adapters.postgres.keyring import PostgresKeyringStore
from keyvault.adapters.postgres.pool import Database, PostgresOptions, open_database
from keyvault.adapters.postgres.row_history import PostgresCorruptionLog
from keyvault.adapters.postgres.schema import check_schema, grant, migrate
from keyvault.adapters.postgres.shares_and_halts import PostgresSharesAndHalts
from keyvault.domain.errors import AuthorityForgedError
from keyvault.domain.halts import ROW_ID as HALTS_ROW_ID
from keyvault.domain.leaf_seals import LeafSealer
from keyvault.settings import Settings
from keyvault.usecases.change_halts import MakeFirstHaltSet
from keyvault.usecases.change_provider_keys import ProviderKeys
from keyvault.usecases.hold_keyring import HoldKeyring
from keyvault.usecases.present_halts import PresentHalts
from keyvault.usecases.read_authority import ReadAuthority
from keyvault.usecases.report_corruption import ReportCorruption
from keyvault.usecases.revoke_provider_key import AwaitWatchers
from keyvault.usecases.verify_rows import VerifyRows
from keyvault.usecases.write_authority import WindowLimits, WriteHalts, WriteKey
from keyvault.wiring.root_keys import open_root_keys
from servicekit.clock import Clock, SystemClock

if TYPE_CHECKING:
    import contextlib

    from servicekit.metrics import Metrics

SERVICE: Final = "keyvault"

_log = structlog.get_logger("keyvault.app")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What everything else stands on."""

    settings: Settings
    clock: Clock
    database: Database
    authority: PostgresAuthority
    shares_and_halts: PostgresSharesAndHalts
    halts: PresentHalts
    sealer: LeafSealer
    feed: PostgresFeed
    registry: PostgresWatcherRegistry
    keyring: HoldKeyring
    verify: VerifyRows
    capabilities: CatalogueCapabilities
    alarms: MetricAlarms


async def apply_migrations(settings: Settings) -> None:
    """Bring the database to the schema of this release, and grant the serving role what it needs."""
    for name in await migrate(settings.postgres.dsn.get_secret_value()):
        _log.info("schema.migrated", migration=name)
    role = settings.postgres.serving_role
    if role is not None:
        await grant(settings.postgres.dsn.get_secret_value(), role)
        _log.info("schema.granted", role=role)


async def open_base(settings: Settings, metrics: Metrics, stack: contextlib.AsyncExitStack) -> Base:
    """Open everything; it is closed with `stack`. Raises DomainError when something an operator can mend is wrong."""
    clock = SystemClock()
    root, next_root = await open_root_keys(settings, stack, clock=clock)
    if settings.migrate_on_start:
        await apply_migrations(settings)
    postgres = settings.postgres
    database = await stack.enter_async_context(
        open_database(
            PostgresOptions(
                dsn=postgres.dsn.get_secret_value(),
                pool_min=min(postgres.pool_min, postgres.pool_max),
                pool_max=postgres.pool_max,
                connect_timeout=postgres.connect_timeout,
                statement_timeout=postgres.statement_timeout,
            )
        )
    )
    await check_schema(database)
    keyring = HoldKeyring(
        PostgresKeyringStore(database), root=root, next_root=next_root, deployment=settings.deployment
    )
    await keyring.unlock()
    sealer = LeafSealer(keyring.current)
    authority = PostgresAuthority(database, sealer)
    shares_and_halts = PostgresSharesAndHalts(database, sealer, authority)
    verify = VerifyRows(keyring)
    base = Base(
        settings=settings,
        clock=clock,
        database=database,
        authority=authority,
        shares_and_halts=shares_and_halts,
        halts=PresentHalts(shares_and_halts, verify),
        sealer=sealer,
        feed=PostgresFeed(database, sealer, keyring),
        registry=PostgresWatcherRegistry(database),
        keyring=keyring,
        verify=verify,
        capabilities=CatalogueCapabilities(load_catalogue()),
        alarms=MetricAlarms(metrics),
    )
    await _ensure_halt_set(base)
    return base


async def _ensure_halt_set(base: Base) -> None:
    write = WriteHalts(base.shares_and_halts, base.keyring, WindowLimits())
    make = MakeFirstHaltSet(base.shares_and_halts, write=write, clock=base.clock, maker=SERVICE)
    if not await make():
        # It goes on, so that an operator can look: leases are refused until the set is there again.
        base.alarms.corruption_found(HALTS_ROW_ID, AuthorityForgedError.__name__)
        _log.error("halts.missing", remedy="restore the set of halts from a backup; nothing is leased without it")


def read_authority(base: Base) -> ReadAuthority:
    """Return what reads the authority that leases are picked by."""
    return ReadAuthority(base.authority, verify=base.verify, halts=base.halts, corruption=report_corruption(base))


def provider_keys(base: Base) -> ProviderKeys:
    """Return what all mutations of provider keys share."""
    return ProviderKeys(
        base.authority,
        keyring=base.keyring,
        verify=base.verify,
        write=WriteKey(base.authority, base.keyring, WindowLimits()),
    )


def report_corruption(base: Base) -> ReportCorruption:
    """Return what tells the log and the operator of stored bytes that fail authentication."""
    log = PostgresCorruptionLog(base.database, base.sealer)
    return ReportCorruption(log, alarms=base.alarms, clock=base.clock, reporter=SERVICE)


def await_watchers(base: Base) -> AwaitWatchers:
    """Return what waits until no watcher can use what was leased before a change."""
    return AwaitWatchers(base.registry, clock=base.clock, poll=base.settings.revocation.acknowledgement_poll)

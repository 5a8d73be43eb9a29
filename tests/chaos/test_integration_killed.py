"""Kill -9 of what integrates the audit log, at random moments while entries are appended: the tree is that of the log.

Two processes integrate at once and are killed in turn; afterwards every checkpoint that any of them signed, every tile
and the newest root are held against the leaves, and every checkpoint is proved to continue the one before it.
"""

import asyncio
import contextlib
import itertools
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from keyvault.adapters.postgres.authority import PostgresAuthority
from keyvault.adapters.postgres.pool import Database, PostgresOptions, open_database
from keyvault.adapters.postgres.schema import migrate
from keyvault.adapters.postgres.tree import PostgresTree
from keyvault.domain.checkpoints import open_own_checkpoint
from keyvault.domain.leaf_seals import LeafSealer
from keyvault.usecases.prove_log import ProveLog
from services.keyvault.tests.contract.tree_contract import entry
from services.keyvault.tests.integration.test_audit_tree import RING, replica
from testkit.settings import TestkitSettings
from transparency.merkle import root_of, verify_consistency
from transparency.tiles import GrowingTree

pytestmark = pytest.mark.chaos

_ROOT = Path(__file__).resolve().parents[2]
_KILLS = 2 * TestkitSettings().chaos_rounds
_BATCH = 50
_PAUSE_SECONDS = 0.01
_PROVED_MAX = 100
_SECONDS = timedelta(seconds=10)


def _options(dsn: str) -> PostgresOptions:
    return PostgresOptions(dsn=dsn, pool_min=1, pool_max=2, connect_timeout=_SECONDS, statement_timeout=_SECONDS)


async def integrate_for_ever(dsn: str) -> None:
    """Be a replica that integrates all the time, and say when it begins."""
    async with open_database(_options(dsn)) as database:
        work = replica(database)
        sys.stdout.write("integrating\n")
        sys.stdout.flush()
        while True:
            await work.if_due(timedelta())


@contextlib.asynccontextmanager
async def _integrating(dsn: str) -> AsyncIterator[asyncio.subprocess.Process]:
    program = f"import asyncio; from {__name__} import integrate_for_ever; asyncio.run(integrate_for_ever({dsn!r}))"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=_ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _append_until(log: PostgresAuthority, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await log.append([entry() for _ in range(random.randint(1, _BATCH))])
        await asyncio.sleep(_PAUSE_SECONDS)


async def _killed_again_and_again(dsn: str, dice: random.Random) -> None:
    for _ in range(_KILLS):
        async with contextlib.AsyncExitStack() as stack:
            starting = [stack.enter_async_context(_integrating(dsn)) for _ in range(2)]
            victims = await asyncio.gather(*starting)
            await asyncio.sleep(dice.uniform(0.05, 0.4))
            for victim in victims:
                victim.send_signal(signal.SIGKILL)
                assert await victim.wait() == -signal.SIGKILL
                await asyncio.sleep(dice.uniform(0, 0.05))


@pytest.mark.timeout(300)
async def test_the_tree_survives_whoever_is_killed_at_it(
    make_postgres_database: Callable[..., Awaitable[str]],
) -> None:
    """All that was signed by anybody is true, and continues what was signed before; nothing has to be repaired."""
    dsn = await make_postgres_database()
    await migrate(dsn)
    async with open_database(_options(dsn)) as database:
        log, stop = PostgresAuthority(database, LeafSealer(lambda: RING)), asyncio.Event()
        appending = asyncio.ensure_future(_append_until(log, stop))
        await _killed_again_and_again(dsn, random.Random(_KILLS))
        stop.set()
        await appending
        await _hold_against_the_leaves(database, await log.head())


async def _hold_against_the_leaves(database: Database, head: int) -> None:
    rows = await database.fetch("SELECT leaf_hash FROM audit_entries ORDER BY audit_index")
    hashes = [row["leaf_hash"] for row in rows]
    assert len(hashes) == head > 2 * 256
    tiles = await database.fetch("SELECT position, hashes FROM audit_tiles WHERE level = 0")
    assert tiles
    assert all(b"".join(hashes[256 * at : 256 * (at + 1)]) == each for at, each in map(tuple, tiles))
    notes = [row["note"] for row in await database.fetch("SELECT note FROM audit_checkpoints ORDER BY size")]
    assert len(notes) > _KILLS
    newest = await replica(database).covering(head)
    assert (newest.size, newest.checkpoint.root) == (head, root_of(hashes))
    signed = [open_own_checkpoint(RING, note).checkpoint for note in notes]
    tree = GrowingTree()
    for each in signed:
        tree.extend(hashes[tree.size : each.size])
        assert each.root == tree.root()
    prove = ProveLog(PostgresTree(database))
    chosen = [*signed[:: len(signed) // _PROVED_MAX + 1], newest.checkpoint]
    for old, new in itertools.pairwise(each for each in chosen if each.size):
        proof = await prove.consistency(old.size, new)
        verify_consistency(old_size=old.size, old_root=old.root, new_size=new.size, new_root=new.root, proof=proof)

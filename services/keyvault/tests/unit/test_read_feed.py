"""ReadFeed on memory: when it answers, and what it passes over."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.checkpoints import open_own_checkpoint
from keyvault.domain.errors import AuditLogCorruptError
from keyvault.domain.key_states import STATE_BEFORE
from keyvault.usecases.prove_log import ProveLog
from keyvault.usecases.read_feed import FeedQuestion, ReadFeed
from services.keyvault.tests.unit.builders import NOW
from services.keyvault.tests.unit.test_integrate_log import Log

if TYPE_CHECKING:
    from keyvault.usecases.read_feed import FeedPage

WAIT, POLL = timedelta(seconds=20), timedelta(seconds=1)


def feed_of(log: Log) -> ReadFeed:
    """Return the feed of a replica."""
    return ReadFeed(
        log.tree,
        integrate=log.replica(),
        prove=ProveLog(log.tree),
        on_change=log.log.on_change,
        clock=log.clock,
        wait=WAIT,
        poll=POLL,
    )


def question(after: int = 0, *, witnessed: int = 0, no_wait: bool = False) -> FeedQuestion:
    """Return a question."""
    return FeedQuestion(after_index=after, page_size=0, witnessed_size=witnessed, no_wait=no_wait)


async def happen(log: Log, kind: EntryKind = EntryKind.KEY_UPDATED, *details: tuple[str, str]) -> None:
    """Append an entry."""
    await log.log.append([AuditEntry(kind=kind, time=NOW, caller="t", provider_key_id="k", details=details)])


def told(page: FeedPage) -> list[int]:
    """Return the indexes of a page."""
    return [each.audit_index for each in page.entries]


async def started(work: asyncio.Future[FeedPage], log: Log) -> None:
    """Wait until a call waits."""
    while not log.clock.sleepers:
        await asyncio.sleep(0)
    assert not work.done()


async def test_a_waiting_reader_is_woken() -> None:
    """By a change, without time going on; every reader that waits, and none by what is no news."""
    log = Log()
    feed = feed_of(log)
    waiting = [asyncio.ensure_future(feed(question())) for _ in range(3)]
    for each in waiting:
        await started(each, log)
    await happen(log, EntryKind.LEASE_GRANTED)
    for _ in range(50):
        await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    await happen(log)
    pages = await asyncio.gather(*waiting)
    assert [told(page) for page in pages] == [[2]] * 3


async def test_patience_ends() -> None:
    """After the wait there is an answer without news, up to where the log was looked at."""
    log = Log()
    await happen(log, EntryKind.LEASE_GRANTED)
    waiting = asyncio.ensure_future(feed_of(log)(question()))
    await started(waiting, log)
    await log.clock.advance(WAIT - POLL)
    assert not waiting.done()
    await log.clock.advance(2 * POLL)
    page = await waiting
    assert (told(page), page.next_after_index) == ([], 1)


@pytest.mark.parametrize("kind", [EntryKind.KEY_STATE_CHANGED, EntryKind.KEY_REVOKED])
async def test_an_emptied_leaf_is_corruption(kind: EntryKind) -> None:
    """Passing over it would hide a revocation from its owner."""
    log = Log()
    for _ in range(3):
        await happen(log, kind, (STATE_BEFORE, "ACTIVE"))
    await log.replica().covering(3)
    row = log.row(2)._replace(leaf=b"")
    log.tree.tampered[2] = row
    with pytest.raises(AuditLogCorruptError) as refused:
        await feed_of(log)(question(no_wait=True))
    assert refused.value.facts == {"finding": "LEAF_EDITED", "audit_index": 2}


async def test_a_log_behind_its_witness_is_told_at_once() -> None:
    """Without waiting, with the checkpoint that there is, and without a proof that there cannot be."""
    log = Log()
    await happen(log)
    signed = await log.replica().covering(1)
    page = await feed_of(log)(question(after=1, witnessed=5))
    assert page.is_behind_witness
    assert (page.entries, page.consistency_proof) == ((), ())
    assert open_own_checkpoint(log.rings.ring, page.note) == signed


@pytest.mark.parametrize("count", [1, 5, 300])
async def test_a_page_comes_with_a_checkpoint_that_covers_it(count: int) -> None:
    """Made for it, if need be."""
    log = Log()
    for _ in range(count):
        await happen(log)
    page = await feed_of(log)(question(no_wait=True))
    assert told(page) == list(range(1, min(count, 100) + 1))
    assert open_own_checkpoint(log.rings.ring, page.note).size >= page.next_after_index == min(count, 100)

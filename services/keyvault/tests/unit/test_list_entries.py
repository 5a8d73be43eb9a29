"""ListEntries on memory: what time and retention do to a log whose clocks do not agree."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.errors import AuditLogCorruptError
from keyvault.domain.ownership import Principal
from keyvault.usecases.list_entries import CLOCKS_APART_MAX, READINGS_MAX, EntryListing, ListEntries
from keyvault.usecases.prove_log import ProveLog
from services.keyvault.tests.unit.builders import NOW
from services.keyvault.tests.unit.test_integrate_log import Log

if TYPE_CHECKING:
    from keyvault.usecases.change_provider_keys import ProviderKeys

EVERYTHING = EntryListing(
    acting_for=Principal(operator_id="op"),
    key_id="",
    agent_id="",
    kinds=frozenset(),
    start_time=None,
    end_time=None,
    newest_first=False,
    page_size=0,
    page_token="",
)
MINUTES = st.integers(min_value=0, max_value=400)


async def filled(minutes: list[float]) -> Log:
    """Return a log of entries that were made so many minutes after the start, by their replicas' clocks."""
    log = Log()
    for at in minutes:
        time = NOW + timedelta(minutes=at)
        await log.log.append([AuditEntry(kind=EntryKind.LEASE_GRANTED, time=time, caller="t", provider_key_id="k")])
    return log


async def listed(log: Log, **changes: Any) -> list[int]:
    """Return the indexes of all pages; every entry is proved on the way."""
    entries = ListEntries(log.tree, keys=cast("ProviderKeys", None), integrate=log.replica(), prove=ProveLog(log.tree))
    listing, found = replace(EVERYTHING, **changes), []
    for _ in range(1000):
        page = await entries(listing)
        found += [each.audit_index for each in page.entries]
        if not page.next_page_token:
            return found
        listing = replace(listing, page_token=page.next_page_token)
    raise AssertionError("the pages have no end")


def at(minutes: float) -> datetime:
    """Return a time."""
    return NOW + timedelta(minutes=minutes)


@given(
    steps=st.lists(st.tuples(MINUTES, st.floats(min_value=0, max_value=14)), max_size=30),
    begin=MINUTES,
    end=MINUTES,
    page_size=st.integers(min_value=1, max_value=40),
    order=st.sampled_from([1, -1]),
)
@settings(max_examples=60, deadline=None)
async def test_entries_are_found_by_time_also_with_clocks_apart(
    steps: list[tuple[int, float]], begin: int, end: int, page_size: int, order: int
) -> None:
    """Whatever order the clocks of replicas give, a listing by time is that of all entries, filtered."""
    minutes = [minute - late for minute, late in sorted(steps)]
    log = await filled(minutes)
    usual = {"page_size": page_size, "newest_first": order < 0}
    for start_time, end_time in ((at(begin), None), (None, at(end)), (at(begin), at(end))):
        expected = [
            index
            for index, minute in enumerate(minutes, start=1)
            if (start_time is None or at(minute) >= start_time) and (end_time is None or at(minute) < end_time)
        ]
        assert await listed(log, start_time=start_time, end_time=end_time, **usual) == expected[::order]


async def test_times_beyond_any_calendar_are_only_early_or_late() -> None:
    """The first and the last time that there is bound nothing."""
    log = await filled([0, 1, 2])
    early, late = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
    assert await listed(log, start_time=early, end_time=late) == [1, 2, 3]
    assert await listed(log, end_time=early) == await listed(log, start_time=late) == []


@pytest.mark.parametrize("newest_first", [False, True])
async def test_dropped_entries_are_in_nobodys_way(newest_first: Any) -> None:
    """What was dropped is not listed, and times are found all the same."""
    log = await filled([float(minute) for minute in range(300)])
    await log.replica().covering(300)
    for index in range(1, 257):
        log.tree.tampered[index] = None
    order = -1 if newest_first else 1
    kept = list(range(257, 301))
    assert await listed(log, newest_first=newest_first) == kept[::order]
    window = {"start_time": at(0), "end_time": at(400), "newest_first": newest_first}
    assert await listed(log, **window) == kept[::order]
    window = {"start_time": at(257), "end_time": at(295), "newest_first": newest_first}
    assert await listed(log, **window) == [index for index in kept if 258 <= index <= 295][::order]


@pytest.mark.parametrize("window", [{}, {"start_time": at(0), "end_time": at(400)}], ids=["all", "a window"])
async def test_an_emptied_leaf_is_corruption(window: Any) -> None:
    """Leaving it out, or listing its hash alone, would hide what it said."""
    log = await filled([0, 1, 2])
    await log.replica().covering(3)
    log.tree.tampered[2] = log.row(2)._replace(leaf=b"")
    with pytest.raises(AuditLogCorruptError) as refused:
        await listed(log, **window)
    assert refused.value.facts == {"finding": "LEAF_EDITED", "audit_index": 2}


async def test_a_page_may_be_short_and_goes_on() -> None:
    """One call reads so much and no more; the token says where to go on, and the last page has none."""
    # Two entries a minute: what the slack of the clocks begins with is more than one call reads, two at a time.
    log = await filled([number / 2 for number in range(100)])
    entries = ListEntries(log.tree, keys=cast("ProviderKeys", None), integrate=log.replica(), prove=ProveLog(log.tree))
    assert 2 * CLOCKS_APART_MAX / timedelta(minutes=1) > 2 * READINGS_MAX
    page = await entries(replace(EVERYTHING, start_time=at(30), page_size=1))
    assert page.entries == ()
    assert page.next_page_token
    assert await listed(log, start_time=at(30), end_time=at(31), page_size=1) == [61, 62]

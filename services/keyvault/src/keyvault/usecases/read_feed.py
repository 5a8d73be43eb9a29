"""ReadFeed: what owners are to be told of, with the newest checkpoint, for the witness of the log.

A page is answered only with a checkpoint that covers it. When the log cannot be signed any further, what was signed is
still told, and then the reader hears why there is no more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import EntryKind, IndexedEntry
from keyvault.domain.errors import AuditLogCorruptError
from keyvault.domain.key_states import STATE_BEFORE
from keyvault.domain.new_keys import refused
from keyvault.usecases.read_entries import prove_entries, read_entry
from servicekit.calls import call_deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyvault.domain.checkpoints import SignedCheckpoint
    from keyvault.ports import AuditTree, StoredLeaf, TreeState
    from keyvault.usecases.integrate_log import IntegrateLog
    from keyvault.usecases.prove_log import ProveLog
    from servicekit.clock import Clock

PAGE_SIZE_DEFAULT: Final = 100
PAGE_SIZE_MAX: Final = 1000

ANSWER_MARGIN: Final = timedelta(milliseconds=500)
"""What is kept of the caller's deadline to prove and answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedQuestion:
    """What a reader has, and how long it would wait."""

    after_index: int
    page_size: int
    witnessed_size: int
    no_wait: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedPage:
    """Entries after the reader's index; every entry up to `next_after_index` was looked at."""

    entries: tuple[IndexedEntry, ...]
    next_after_index: int
    note: str
    consistency_proof: tuple[bytes, ...]
    is_behind_witness: bool


class ReadFeed:
    """The feed of one process."""

    def __init__(  # noqa: PLR0913 - what it reads, and how it waits.
        self,
        tree: AuditTree,
        *,
        integrate: IntegrateLog,
        prove: ProveLog,
        on_change: Callable[[Callable[[], None]], None],
        clock: Clock,
        wait: timedelta,
        poll: timedelta,
    ) -> None:
        """Read `tree`; wait up to `wait` for news, looking when `on_change` says so and every `poll`."""
        self._tree = tree
        self._integrate = integrate
        self._prove = prove
        self._clock = clock
        self._wait = wait
        self._poll = poll
        self._changed = asyncio.Event()
        on_change(self._wake)

    async def __call__(self, asked: FeedQuestion) -> FeedPage:
        """Return what is new.

        Raises:
            InvalidArgumentError: the page size or an index is out of range.
            AuditLogCorruptError: nothing after the reader's index could be signed, or an entry is not what was signed.
        """
        size = _checked(asked)
        state, rows = await self._news(asked, size)
        if state.head < asked.witnessed_size:
            return _behind(asked, state)
        if asked.after_index > state.head:
            raise refused("after_index", "OUT_OF_RANGE", "The log is shorter than that. Compare it with your witness.")
        signed = await self._signed(asked, rows[-1].audit_index if len(rows) == size else state.head)
        if signed.size < asked.witnessed_size:
            return _behind(asked, state)
        rows = [row for row in rows if row.audit_index <= signed.size]
        proved = await prove_entries(self._prove, rows, signed.checkpoint)
        entries = [
            IndexedEntry(each.audit_index, each.entry) for row, each in zip(rows, proved, strict=True) if _is_told(row)
        ]
        proof: list[bytes] = []
        if asked.witnessed_size:
            proof = await self._prove.consistency(asked.witnessed_size, signed.checkpoint)
        return FeedPage(
            entries=tuple(entries),
            next_after_index=rows[-1].audit_index if len(rows) == size else min(state.head, signed.size),
            note=signed.note,
            consistency_proof=tuple(proof),
            is_behind_witness=False,
        )

    async def _news(self, asked: FeedQuestion, size: int) -> tuple[TreeState, list[StoredLeaf]]:
        """Return what is new, once there is something, or time is up."""
        patience = 0.0 if asked.no_wait else call_deadline(self._wait, margin=ANSWER_MARGIN)
        until = self._clock.monotonic() + patience
        while True:
            changed = self._changed
            state = await self._tree.state()
            rows = await self._tree.read_told(asked.after_index, up_to=state.head, limit=size)
            is_behind = state.head < max(asked.witnessed_size, asked.after_index)
            left = until - self._clock.monotonic()
            if is_behind or left <= 0 or len(rows) == size or any(_is_told(row) for row in rows):
                return state, rows
            await self._pause(changed, min(self._poll.total_seconds(), left))

    async def _pause(self, changed: asyncio.Event, seconds: float) -> None:
        change = asyncio.ensure_future(changed.wait())
        pause = asyncio.ensure_future(self._clock.sleep(timedelta(seconds=seconds)))
        try:
            await asyncio.wait([change, pause], return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
            pause.cancel()

    async def _signed(self, asked: FeedQuestion, audit_index: int) -> SignedCheckpoint:
        try:
            return await self._integrate.covering(max(audit_index, asked.witnessed_size))
        except AuditLogCorruptError:
            signed = await self._integrate.newest()
            if signed.size <= asked.after_index:
                raise
            return signed

    def _wake(self) -> None:
        # Whoever waits has this event, and whoever comes next must not be told of the same change.
        self._changed.set()
        self._changed = asyncio.Event()


def _checked(asked: FeedQuestion) -> int:
    if asked.page_size < 0 or asked.page_size > PAGE_SIZE_MAX:
        remedy = f"Send 1 to {PAGE_SIZE_MAX}, or leave it out for {PAGE_SIZE_DEFAULT}."
        raise refused("page_size", "PAGE_SIZE_OUT_OF_RANGE", remedy)
    for field, value in (("after_index", asked.after_index), ("witnessed_size", asked.witnessed_size)):
        if value < 0:
            raise refused(field, "OUT_OF_RANGE", "Send 0 or more.")
    return asked.page_size or PAGE_SIZE_DEFAULT


def _behind(asked: FeedQuestion, state: TreeState) -> FeedPage:
    return FeedPage(
        entries=(),
        next_after_index=min(asked.after_index, state.head),
        note=state.note,
        consistency_proof=(),
        is_behind_witness=True,
    )


def _is_told(row: StoredLeaf) -> bool:
    """Return whether owners are told of the entry: not of a cool-down. Raises AuditLogCorruptError."""
    return row.kind != EntryKind.KEY_STATE_CHANGED or any(name == STATE_BEFORE for name, _ in read_entry(row).details)

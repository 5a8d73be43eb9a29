"""Waits for what another process will bring about, which no clock of ours can hurry."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

_Found = TypeVar("_Found")
_POLL_SECONDS = 0.05


async def eventually(
    look: Callable[[], Awaitable[_Found]], holds: Callable[[_Found], bool], *, timeout_seconds: float = 20
) -> _Found:
    """Look again and again until what is seen holds, and return it.

    Raises:
        AssertionError: it never did; the message carries what was seen last.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + timeout_seconds
    while not holds(found := await look()):
        if loop.time() > give_up_at:
            message = f"still not so after {timeout_seconds} s: {found!r:.2000}"
            raise AssertionError(message)
        await asyncio.sleep(_POLL_SECONDS)
    return found

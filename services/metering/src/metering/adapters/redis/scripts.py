"""The scripts, and running many of them in one write."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final

import hiredis

from metering.adapters.redis.connection import ScriptConnection, packed, unavailable
from metering.domain.licences import StoreIdentity

_FOLDER: Final = files("metering.adapters.redis") / "lua"


@dataclass(frozen=True, slots=True)
class Script:
    """A script's text, and the digest that Redis knows it by."""

    text: str
    sha: bytes

    @classmethod
    def named(cls, name: str, *, has_prelude: bool = True) -> "Script":
        """Read a script from this package."""
        prelude = (_FOLDER / "prelude.lua").read_text() if has_prelude else ""
        text = prelude + (_FOLDER / f"{name}.lua").read_text()
        # Redis names scripts by SHA-1; nothing is protected by it.
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest().encode())


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """One run of a script."""

    script: Script
    keys: tuple[bytes, ...]
    arguments: tuple[bytes, ...]

    def packed(self) -> bytes:
        """Return the command as it goes on the wire."""
        return packed(b"EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)


class ScriptRunner:
    """Runs batches of scripts on one identity."""

    def __init__(self, connection: ScriptConnection) -> None:
        """Run on a connection."""
        self._connection = connection

    async def run(self, identity: StoreIdentity, calls: Sequence[ScriptCall]) -> list[Any] | None:
        """Run scripts in one write and return their replies; None, with nothing run, on a server of another identity.

        Raises:
            DependencyUnavailableError: Redis cannot be reached, did not answer, or refused a script for a reason that
                is not the script's (read-only replica, out of memory, loading).
        """
        if not calls:
            return []
        replies = await self._connection.execute_on(identity, b"".join(call.packed() for call in calls), len(calls))
        if replies is None:
            return None
        missing = [i for i, reply in enumerate(replies) if _is_unknown_script(reply)]
        if missing:
            # After a restart or SCRIPT FLUSH. Loading is idempotent, and a script that was unknown did nothing.
            again = await self._load_and_run(identity, [calls[i] for i in missing])
            if again is None:
                return None
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
        return [unavailable(f"refused: {_kind(reply)}") if isinstance(reply, Exception) else reply for reply in replies]

    async def _load_and_run(self, identity: StoreIdentity, calls: Sequence[ScriptCall]) -> list[Any] | None:
        texts = {call.script.text for call in calls}
        loads = [packed(b"SCRIPT", b"LOAD", text) for text in sorted(texts)]
        sent = b"".join([*loads, *(call.packed() for call in calls)])
        replies = await self._connection.execute_on(identity, sent, len(loads) + len(calls))
        return None if replies is None else replies[len(loads) :]


def _is_unknown_script(reply: object) -> bool:
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT")


def _kind(reply: Exception) -> str:
    # The first word is Redis' own error code; the rest may quote arguments.
    return str(reply).split(" ", 1)[0]

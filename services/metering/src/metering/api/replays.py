"""Answers of mutations given again: the same request id and body get the same answer."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from metering.api.fields import checked_request_id
from metering.domain.errors import RequestIdReusedError
from metering.domain.principals import Principal
from metering.domain.windows import to_ms
from metering.ports import Requests
from servicekit.clock import Clock

Answer = TypeVar("Answer", bound=Message)


class Replays:
    """Runs a mutation unless its answer is kept."""

    def __init__(self, requests: Requests, clock: Clock) -> None:
        """Keep answers in `requests`."""
        self._requests = requests
        self._clock = clock

    async def __call__(
        self,
        rpc: str,
        request: Message,
        principal: Principal,
        *,
        request_id: str,
        kind: type[Answer],
        run: Callable[[], Awaitable[Answer]],
    ) -> Answer:
        """Return the kept answer, or run and keep.

        Raises:
            RequestIdReusedError: The id was used with another body.
            InvalidArgumentError: The id is not a UUIDv7, or too old or from the future.
        """
        now = self._clock.now()
        checked_request_id(request_id, now, to_ms(now))
        scope = f"owner:{principal.owner_id}" if principal.owner_id else f"operator:{principal.operator_id}"
        body_hash = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        # Claimed before it runs: two bodies that came at once would else both be done. A claim without an answer is a
        # run that failed or that is under way; the same body may run again, since every mutation is idempotent.
        claimed, kept = await self._requests.claim(rpc, scope, request_id, body_hash=body_hash)
        if claimed != body_hash:
            raise RequestIdReusedError("The request id was used with another body; take a new one.")
        if kept is not None:
            return kind.FromString(kept)
        answer = await run()
        await self._requests.keep(rpc, scope, request_id, answer=answer.SerializeToString(deterministic=True))
        return answer

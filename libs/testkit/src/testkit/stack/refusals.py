"""Turns a refused call into what it says, and a call that should have been refused into a failed test."""

from collections.abc import Awaitable

import grpc
import pytest

from servicekit.wire import RemoteError, error_from_rpc


async def refusal(call: Awaitable[object]) -> RemoteError:
    """Await a call that must be refused, and return its typed error."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error_from_rpc(error)
    pytest.fail(f"answered, but should have been refused: {type(answer).__name__}")

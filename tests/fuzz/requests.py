"""Requests of every RPC, as far as the use case: from the bytes of the message to what the use case is asked.

The servicers are the real ones. Behind them stands something that is any use case, and answers none: a request that
reaches it has been taken, and all that may happen before is a typed refusal.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message

from keyvault.api.errors import ERRORS
from keyvault.app import DESCRIPTORS
from servicekit.errors import DomainError
from servicekit.identity import CURRENT_CALLER, Caller

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_CALLERS: Final = {
    role.encode(): Caller(f"spiffe://byok.local/ns/byok/sa/{role}", frozenset({role}))
    for role in ("edge", "operator", "router")
}


class ReachedError(Exception):
    """A use case was asked: the request has been taken."""


class AnyUseCase:
    """Every use case, and every part of one."""

    def __getattr__(self, name: str) -> AnyUseCase:
        return self

    def __call__(self, *_arguments: object, **_named: object) -> NoReturn:
        raise ReachedError


def _servicer_of(method: MethodDescriptor) -> Any:
    name = method.containing_service.name
    module = importlib.import_module(f"keyvault.api.{name.removesuffix('Service').lower()}_servicer")
    kind = getattr(module, name.replace("Service", "Servicer"))
    parameters = list(inspect.signature(kind).parameters)
    return kind(*(AnyUseCase() for _ in parameters))


@dataclass(frozen=True)
class Method:
    """One RPC: what it is called with, and what serves it."""

    descriptor: MethodDescriptor
    message: type[Message]
    handler: Any


def _methods() -> Iterator[tuple[str, Method]]:
    for service in DESCRIPTORS:
        for descriptor in service.methods:
            message = message_factory.GetMessageClass(descriptor.input_type)
            servicer = _servicer_of(descriptor)
            if descriptor.name not in vars(type(servicer)):
                # Refused by the generated base, whatever the request says.
                continue
            handler = getattr(servicer, descriptor.name)
            yield f"{service.name}/{descriptor.name}", Method(descriptor, message, handler)


METHODS: Final = dict(_methods())


def parse_request(data: bytes) -> None:
    """Give an RPC, named in the first line, to the role in the second line, the message in the rest."""
    name, _, rest = data.partition(b"\n")
    role, _, encoded = rest.partition(b"\n")
    method = METHODS.get(name.decode("ascii", "replace"))
    caller = _CALLERS.get(role)
    if method is None or caller is None:
        return
    try:
        message = method.message.FromString(encoded)
    except DecodeError:
        return
    token = CURRENT_CALLER.set(caller)
    try:
        _serve(method.descriptor, method.handler, message)
    except ReachedError:
        return
    except DomainError as error:
        # It must also be one that can be told: with a reason of the contract's.
        ERRORS.status(error)
    finally:
        CURRENT_CALLER.reset(token)


def _serve(method: MethodDescriptor, handler: Any, message: Message) -> None:
    """Run a handler to its end or its use case; it waits for nothing, so that no event loop is needed."""
    called = handler(_once(message) if method.client_streaming else message, None)
    step = anext(called) if method.server_streaming else called
    try:
        step.send(None) if hasattr(step, "send") else step.__await__().send(None)
    except (StopIteration, StopAsyncIteration):
        return
    raise AssertionError("a handler waits before it has asked its use case")


async def _once(message: Message) -> AsyncIterator[Message]:
    yield message

"""`keyvault halt`: the emergency stop of a scope.

    add SCOPE --reason WHY    stop leasing there; answers when no call can start any more
    remove HALT               end a halt
    list                      what is halted

A scope is `everything`, `platform`, or `provider:SLUG`, `organization:ID`, `owner:ID`, `agent:ID`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from byok.keyvault.v1 import emergency_service_pb2, emergency_service_pb2_grpc
from byok.type.v1 import account_pb2
from keyvault.cli.operators import DONE, FOUND, Operator, UsageError, say

if TYPE_CHECKING:
    import argparse

    from keyvault.cli.main import Groups

_NAMELESS: Final = ("everything", "platform")
_NAMED: Final = {
    "provider": "provider",
    "organization": "organization_id",
    "owner": "owner_id",
    "agent": "agent_id",
}


def add_commands(groups: Groups) -> None:
    """Add the commands of the emergency stop."""
    halt = groups.add_parser("halt", help="stop leasing in a scope, and end that")
    commands = halt.add_subparsers(metavar="command", required=True)
    add = commands.add_parser("add", help="stop leasing in a scope")
    add.add_argument("scope", metavar="SCOPE", help=", ".join((*_NAMELESS, *(f"{kind}:ID" for kind in _NAMED))))
    add.add_argument("--reason", required=True, help="for those whose content is held")
    add.set_defaults(work=_add)
    remove = commands.add_parser("remove", help="end a halt")
    remove.add_argument("halt", metavar="HALT", help="its id, as `keyvault halt list` tells it")
    remove.set_defaults(work=_remove)
    commands.add_parser("list", help="tell what is halted; exit code 1 when something is").set_defaults(work=_list)


def scope_of(text: str) -> emergency_service_pb2.HaltScope:
    """Return the scope that an operator typed. Raises UsageError when there is no such kind."""
    kind, _, name = text.partition(":")
    if kind in _NAMELESS and not name:
        return emergency_service_pb2.HaltScope(**{kind: True})  # type: ignore[arg-type]  # a name of the table
    if kind in _NAMED and name:
        return emergency_service_pb2.HaltScope(**{_NAMED[kind]: name})  # type: ignore[arg-type]  # as above
    raise UsageError(f"name a scope: {', '.join(_NAMELESS)}, or one of {', '.join(_NAMED)} with a colon and its id")


def scope_label(scope: emergency_service_pb2.HaltScope) -> str:
    """Return a scope as an operator types it."""
    field = scope.WhichOneof("kind") or ""
    kinds = {field: kind for kind, field in _NAMED.items()}
    return f"{kinds[field]}:{getattr(scope, field)}" if field in kinds else field


async def _add(arguments: argparse.Namespace, operator: Operator) -> int:
    request = emergency_service_pb2.HaltRequest(
        request_id=operator.new_request_id(),
        acting_for=_principal(operator),
        actor=operator.actor,
        scope=scope_of(arguments.scope),
        reason=arguments.reason,
    )
    made = await _stub(operator).Halt(request)
    say(f"Halted {scope_label(made.halt.scope)}: no call starts there any more.")
    say(f"{made.acknowledged_watchers} Routers confirmed, {made.expired_watchers} ran out of time.")
    say(f"To end it: keyvault halt remove {made.halt.halt_id}")
    return DONE


async def _remove(arguments: argparse.Namespace, operator: Operator) -> int:
    request = emergency_service_pb2.ResumeRequest(
        request_id=operator.new_request_id(),
        acting_for=_principal(operator),
        actor=operator.actor,
        halt_id=arguments.halt,
    )
    resumed = await _stub(operator).Resume(request)
    say(f"Resumed, by audit entry {resumed.authority_index}.")
    return DONE


async def _list(_arguments: argparse.Namespace, operator: Operator) -> int:
    request = emergency_service_pb2.ListHaltsRequest(acting_for=_principal(operator))
    halts = (await _stub(operator).ListHalts(request)).halts
    for halt in halts:
        since = halt.create_time.ToJsonString()
        by_whom = "an operator" if halt.by_operator else "its owner"
        say(f"{halt.halt_id}  {scope_label(halt.scope)}  since {since}  by {halt.actor} ({by_whom}): {halt.reason}")
    if not halts:
        say("Nothing is halted.")
    return FOUND if halts else DONE


def _principal(operator: Operator) -> account_pb2.Principal:
    return account_pb2.Principal(operator_id=operator.actor)


def _stub(operator: Operator) -> emergency_service_pb2_grpc.EmergencyServiceStub:
    stub: emergency_service_pb2_grpc.EmergencyServiceStub = operator.stub(
        emergency_service_pb2_grpc.EmergencyServiceStub
    )
    return stub

"""`keyvault keyring`: the keys that KeyVault uses itself, their rotation, and the root key that wraps them.

    list                        versions, replicas, backups
    stage PURPOSE               make a new version
    promote PURPOSE VERSION     let it wrap, when every live replica has proved it
    rewrap                      ask for all secrets to be wrapped by the primary KEK, and follow it
    disable, enable, destroy    PURPOSE VERSION
    register-backup             so that destruction and erasure wait for it
    rotate-root                 wrap the keyring by the next root key

PURPOSE is `kek`, `authority-mac`, `equality-mac`, `submission` or `checkpoint`. The runbooks are rotate-*.md in
docs/runbooks.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import grpc

from byok.keyvault.v1 import keyring_service_pb2, keyring_service_pb2_grpc
from keyvault.cli.operators import DONE, FAILED, FOUND, Operator, UsageError, say, say_wrong
from keyvault.cli.progress import Progress
from servicekit.wire import error_from_rpc

if TYPE_CHECKING:
    import argparse

    from keyvault.cli.main import Groups

PURPOSES: Final = {
    name.removeprefix("KEYRING_PURPOSE_").lower().replace("_", "-"): number
    for name, number in keyring_service_pb2.KeyringPurpose.items()
    if number
}
_POLL_SECONDS: Final = 1.0


def add_commands(groups: Groups) -> None:
    """Add the commands of the keyring."""
    keyring = groups.add_parser("keyring", help="rotate the keys that KeyVault uses itself")
    commands = keyring.add_subparsers(metavar="command", required=True)
    listed = commands.add_parser("list", help="tell versions, replicas and backups")
    listed.add_argument("--count", action="store_true", help="count the rows that need each version")
    listed.set_defaults(work=_list)
    stage = commands.add_parser("stage", help="make a new version")
    stage.add_argument("purpose", choices=PURPOSES)
    stage.set_defaults(work=_stage)
    for name, work, told in (
        ("promote", _promote, "let a staged version wrap"),
        ("disable", _disable, "forbid the use of a version that only unwraps"),
        ("enable", _enable, "allow it again"),
        ("destroy", _destroy, "destroy a disabled version for good"),
    ):
        command = commands.add_parser(name, help=told)
        command.add_argument("purpose", choices=PURPOSES)
        command.add_argument("version", type=int)
        command.set_defaults(work=work)
        if name == "destroy":
            command.add_argument("--old-root-key-is-gone", action="store_true", help="your word that it is")
            command.add_argument("--give-up-backups", action="store_true", help="backups of before become unreadable")
            command.add_argument("--confirmation", default="", help="what the command told when it was run before")
    _add_rewrap(commands)
    backup = commands.add_parser("register-backup", help="say that a backup was taken, and when its last copy is gone")
    backup.add_argument("backup", metavar="NAME")
    backup.add_argument("--taken", required=True, metavar="TIME")
    backup.add_argument("--expires", required=True, metavar="TIME")
    backup.set_defaults(work=_register_backup)
    commands.add_parser("rotate-root", help="wrap the keyring by the next root key").set_defaults(work=_rotate_root)


def _add_rewrap(commands: Groups) -> None:
    rewrap = commands.add_parser(
        "rewrap", help="wrap all secrets by the primary KEK; the process `rewrap` does the work"
    )
    rewrap.add_argument("--rate", type=int, default=0, metavar="KEYS", help="at most so many secrets a second")
    rewrap.add_argument("--pause", action="store_true", help="stop for now")
    rewrap.add_argument("--no-follow", action="store_true", help="ask, and tell how it stands")
    rewrap.set_defaults(work=_rewrap)


async def _list(arguments: argparse.Namespace, operator: Operator) -> int:
    answer = await _stub(operator).ListKeyring(keyring_service_pb2.ListKeyringRequest(count_rows=arguments.count))
    live = [replica for replica in answer.replicas if replica.is_live]
    say(f"root key {answer.root_key_id}" + (f", next {answer.next_root_key_id}" if answer.next_root_key_id else ""))
    for each in answer.versions:
        state = keyring_service_pb2.KeyringState.Name(each.state).removeprefix("KEYRING_STATE_")
        rows = f", {each.needed_by_rows} rows need it" if each.needed_by_rows >= 0 else ""
        proved = f", proved by {len(each.proved_by)} of {len(live)}" if state == "STAGED" else ""
        say(f"{_purpose_name(each.purpose):14} {each.version:4} {state:13} since {_time_told(each)}{proved}{rows}")
    for replica in answer.replicas:
        say(f"replica {replica.replica_id} {replica.release} {'live' if replica.is_live else 'gone'}")
    for backup in answer.backups:
        taken, gone = backup.snapshot_time.ToJsonString(), backup.expire_time.ToJsonString()
        say(f"backup {backup.backup_id} of {taken}, gone {gone}")
    return DONE


async def _stage(arguments: argparse.Namespace, operator: Operator) -> int:
    request = keyring_service_pb2.StageKeyRequest(
        request_id=operator.new_request_id(), actor=operator.actor, purpose=PURPOSES[arguments.purpose]
    )
    staged = (await _stub(operator).StageKey(request)).version
    say(
        f"{arguments.purpose} version {staged.version} is STAGED. Next: keyvault keyring promote "
        f"{arguments.purpose} {staged.version}"
    )
    return DONE


async def _promote(arguments: argparse.Namespace, operator: Operator) -> int:
    request = keyring_service_pb2.PromoteKeyRequest(**_named(arguments, operator))
    promoted = (await _stub(operator).PromoteKey(request)).version
    say(f"{arguments.purpose} version {promoted.version} is PRIMARY.")
    return DONE


async def _disable(arguments: argparse.Namespace, operator: Operator) -> int:
    await _stub(operator).DisableKey(keyring_service_pb2.DisableKeyRequest(**_named(arguments, operator)))
    say(f"{arguments.purpose} version {arguments.version} is DISABLED.")
    return DONE


async def _enable(arguments: argparse.Namespace, operator: Operator) -> int:
    await _stub(operator).EnableKey(keyring_service_pb2.EnableKeyRequest(**_named(arguments, operator)))
    say(f"{arguments.purpose} version {arguments.version} is DECRYPT_ONLY.")
    return DONE


async def _destroy(arguments: argparse.Namespace, operator: Operator) -> int:
    request = keyring_service_pb2.DestroyKeyRequest(
        **_named(arguments, operator),
        confirmation=arguments.confirmation,
        old_root_key_is_gone=arguments.old_root_key_is_gone,
        give_up_backups=arguments.give_up_backups,
    )
    try:
        await _stub(operator).DestroyKey(request)
    except grpc.aio.AioRpcError as error:
        refused = error_from_rpc(error)
        if refused.reason != "CONFIRMATION_REQUIRED":
            raise
        wanted = refused.metadata["confirmation"]
        if not sys.stdin.isatty():
            say_wrong(f"this cannot be undone; repeat it with --confirmation {wanted}")
            return FAILED
        say("What only this version opens is lost for good, and the version never comes back.")
        if (await asyncio.to_thread(input, f"Type {wanted} to destroy it: ")).strip() != wanted:
            say_wrong("not confirmed; nothing was destroyed")
            return FAILED
        request.confirmation = wanted
        await _stub(operator).DestroyKey(request)
    say(f"{arguments.purpose} version {arguments.version} is DESTROYED.")
    return DONE


async def _rewrap(arguments: argparse.Namespace, operator: Operator) -> int:
    request = keyring_service_pb2.RewrapKeysRequest(
        actor=operator.actor, start=not arguments.pause, keys_per_second_max=arguments.rate, pause=arguments.pause
    )
    stands = await _stub(operator).RewrapKeys(request)
    progress = Progress()
    follow = keyring_service_pb2.RewrapKeysRequest()
    while True:
        state = keyring_service_pb2.RewrapState.Name(stands.state).removeprefix("REWRAP_STATE_")
        remaining = stands.remaining_time.ToTimedelta() if stands.HasField("remaining_time") else None
        progress.show(
            state,
            done=stands.done,
            total=stands.done + stands.remaining,
            rate=stands.keys_per_second,
            remaining=remaining,
        )
        if stands.failed:
            say_wrong(f"{stands.failed} secrets do not open; they are in the audit log, and the pass cannot complete")
        if state in {"IDLE", "COMPLETED", "PAUSED"} or arguments.no_follow:
            break
        await asyncio.sleep(_POLL_SECONDS)
        stands = await _stub(operator).RewrapKeys(follow)
    progress.end()
    return FOUND if stands.failed else DONE


async def _register_backup(arguments: argparse.Namespace, operator: Operator) -> int:
    backup = keyring_service_pb2.Backup(backup_id=arguments.backup)
    backup.snapshot_time.FromDatetime(_time(arguments.taken))
    backup.expire_time.FromDatetime(_time(arguments.expires))
    request = keyring_service_pb2.RegisterBackupRequest(
        request_id=operator.new_request_id(), actor=operator.actor, backup=backup
    )
    await _stub(operator).RegisterBackup(request)
    say(f"backup {arguments.backup} is registered; destruction and erasure wait for {arguments.expires}.")
    return DONE


async def _rotate_root(_arguments: argparse.Namespace, operator: Operator) -> int:
    listed = await _stub(operator).ListKeyring(keyring_service_pb2.ListKeyringRequest())
    if not listed.next_root_key_id:
        raise UsageError("no next root key is set; set next_root_key on every replica, and restart them one by one")
    request = keyring_service_pb2.RotateRootKeyRequest(
        request_id=operator.new_request_id(), actor=operator.actor, root_key_id=listed.next_root_key_id
    )
    answer = await _stub(operator).RotateRootKey(request)
    say(f"{answer.rewrapped_versions} versions are wrapped by {answer.root_key_id} now; make it root_key everywhere.")
    return DONE


def _stub(operator: Operator) -> Any:
    return operator.stub(keyring_service_pb2_grpc.KeyringServiceStub)


def _named(arguments: argparse.Namespace, operator: Operator) -> dict[str, Any]:
    return {
        "request_id": operator.new_request_id(),
        "actor": operator.actor,
        "purpose": PURPOSES[arguments.purpose],
        "version": arguments.version,
    }


def _purpose_name(number: int) -> str:
    return next(name for name, each in PURPOSES.items() if each == number)


def _time_told(version: keyring_service_pb2.KeyringVersion) -> str:
    return version.update_time.ToDatetime().isoformat(timespec="seconds") + "Z"


def _time(written: str) -> datetime:
    try:
        time = datetime.fromisoformat(written)
    except ValueError:
        raise UsageError(f"{written} is no time; write it like 2026-11-25T08:00:00Z") from None
    if time.tzinfo is None:
        raise UsageError(f"{written} names no time zone; write it like 2026-11-25T08:00:00Z")
    return time

"""`keyvault breach`: the breach procedure, step by step, resumable, with its facts in a folder.

    start    halt, rotate the KEK, list what was exposed
    follow   who has rotated since
    report   the facts, from the audit log
    resume   end the halt

What was decided is kept in `case.json` of the folder, so that a step can be repeated, also by somebody else. The
runbook is docs/runbooks/breach.md.
"""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from byok.keyvault.v1 import (
    audit_service_pb2,
    audit_service_pb2_grpc,
    emergency_service_pb2,
    emergency_service_pb2_grpc,
    exposure_service_pb2,
    exposure_service_pb2_grpc,
    keyring_service_pb2,
    keyring_service_pb2_grpc,
)
from byok.type.v1 import account_pb2
from keyvault.cli.breach_report import Facts, report_of
from keyvault.cli.halts import scope_of
from keyvault.cli.operators import DONE, FAILED, FOUND, Operator, UsageError, say, say_wrong
from servicekit.clock import SystemClock
from servicekit.wire import error_from_rpc

if TYPE_CHECKING:
    import argparse

    from keyvault.cli.main import Groups

CASE: Final = "case.json"
EXPOSED: Final = "exposed.csv"
REPORT: Final = "report.md"
KEK: Final = keyring_service_pb2.KEYRING_PURPOSE_KEK
_POLL: Final = timedelta(seconds=1)
_COLUMNS: Final = ("key_id", "account", "provider", "fingerprint", "remedy", "leases", "first_lease", "last_lease")


@dataclass(frozen=True)
class Case:
    """What was decided and done in one breach."""

    reason: str
    start_time: str
    contain_time: str
    caller: str
    halt_id: str
    kek_version: int = 0
    is_kek_rotated: bool = False


def add_commands(groups: Groups) -> None:
    """Add the commands of a breach."""
    breach = groups.add_parser("breach", help="contain a breach and account for it")
    commands = breach.add_subparsers(metavar="command", required=True)
    start = commands.add_parser("start", help="halt, rotate the KEK, list what was exposed")
    start.add_argument("--folder", type=Path, required=True, help="where the facts are kept")
    start.add_argument("--since", required=True, metavar="TIME", help="when the exposure began: 2026-11-25T08:00:00Z")
    start.add_argument("--reason", required=True, help="for those whose content is held")
    start.add_argument("--caller", default="", metavar="URI", help="a stolen Router's certificate; else all keys")
    start.add_argument("--halt", default="everything", metavar="SCOPE", help="everything, platform, or KIND:ID")
    start.add_argument("--keep-kek", action="store_true", help="do not rotate the KEK: only a certificate was stolen")
    start.set_defaults(work=_start)
    for name, work, told in (
        ("follow", _follow, "tell who has rotated since"),
        ("report", _report, "write the incident report's facts"),
        ("resume", _resume, "end the halt"),
    ):
        command = commands.add_parser(name, help=told)
        command.add_argument("--folder", type=Path, required=True)
        command.set_defaults(work=work)


async def _start(arguments: argparse.Namespace, operator: Operator) -> int:
    folder: Path = arguments.folder
    if (folder / CASE).exists():
        case = _read(folder)
        say(f"This breach was begun already; going on with halt {case.halt_id}.")
    else:
        case = await _halt(arguments, operator)
        _write(folder, case)
    if not arguments.keep_kek:
        case = await _rotate(folder, case, operator)
    return await _list_exposed(folder, case, operator)


async def _halt(arguments: argparse.Namespace, operator: Operator) -> Case:
    start_time = _time(arguments.since)
    say(f"1. Halting {arguments.halt}: no lease is granted, cached ones end.")
    request = emergency_service_pb2.HaltRequest(
        request_id=operator.new_request_id(),
        acting_for=account_pb2.Principal(operator_id=operator.actor),
        actor=operator.actor,
        scope=scope_of(arguments.halt),
        reason=arguments.reason,
    )
    halted = await operator.stub(emergency_service_pb2_grpc.EmergencyServiceStub).Halt(request)
    say(f"   halted: {halted.acknowledged_watchers} Routers confirmed, {halted.expired_watchers} ran out of time.")
    return Case(
        reason=arguments.reason,
        start_time=start_time.isoformat(),
        # From the answer on, no call starts on what was leased before: the exposure ends here.
        contain_time=SystemClock().now().isoformat(),
        caller=arguments.caller,
        halt_id=halted.halt.halt_id,
    )


async def _rotate(folder: Path, case: Case, operator: Operator) -> Case:
    keyring = operator.stub(keyring_service_pb2_grpc.KeyringServiceStub)
    say("2. Rotating the KEK: what is copied from now on does not open with what was copied before.")
    if not case.kek_version:
        case = replace(case, kek_version=await _stage_fresh(keyring, operator))
        _write(folder, case)
    if not case.is_kek_rotated:
        await _promote(keyring, case.kek_version, operator)
        # A halt stops no owner from adding a key: what was stored until now is wrapped by what got out.
        case = replace(case, is_kek_rotated=True, contain_time=SystemClock().now().isoformat())
        _write(folder, case)
    await keyring.RewrapKeys(keyring_service_pb2.RewrapKeysRequest(actor=operator.actor, start=True))
    say(f"   version {case.kek_version} is PRIMARY, and a rewrap is asked for. Follow it: keyvault keyring rewrap")
    return case


async def _stage_fresh(keyring: Any, operator: Operator) -> int:
    """Return a version made now: one that was staged before is in the memory of every replica, and may have got out."""
    listed = await keyring.ListKeyring(keyring_service_pb2.ListKeyringRequest())
    for each in listed.versions:
        if each.purpose == KEK and each.state == keyring_service_pb2.KEYRING_STATE_STAGED:
            say(f"   version {each.version} was staged before the breach; it makes room for a fresh one.")
            await _promote(keyring, each.version, operator)
    staged = await keyring.StageKey(
        keyring_service_pb2.StageKeyRequest(request_id=operator.new_request_id(), actor=operator.actor, purpose=KEK)
    )
    return int(staged.version.version)


async def _promote(keyring: Any, version: int, operator: Operator) -> None:
    while True:
        listed = await keyring.ListKeyring(keyring_service_pb2.ListKeyringRequest())
        staged = next(each for each in listed.versions if (each.purpose, each.version) == (KEK, version))
        if staged.state != keyring_service_pb2.KEYRING_STATE_STAGED:
            return
        waiting = {each.replica_id for each in listed.replicas if each.is_live} - set(staged.proved_by)
        if not waiting:
            request = keyring_service_pb2.PromoteKeyRequest(
                request_id=operator.new_request_id(), actor=operator.actor, purpose=KEK, version=version
            )
            await keyring.PromoteKey(request)
            return
        say(f"   waiting for {len(waiting)} replicas to prove version {version}: {', '.join(sorted(waiting))}")
        await SystemClock().sleep(_POLL)


async def _list_exposed(folder: Path, case: Case, operator: Operator) -> int:
    say("3. Listing what was exposed.")
    keys, unjudged = await exposed_keys(case, operator)
    _write_exposed(folder, keys)
    accounts = {_account(key.key.owned_by) for key in keys}
    say(f"   {len(keys)} keys of {len(accounts)} accounts: {folder / EXPOSED}")
    say(
        "4. Tell their owners to replace these keys at their providers: rotating the KEK does not mend a copied secret."
    )
    say(f"   Then: keyvault breach follow --folder {folder}")
    return _told(unjudged, DONE)


async def _follow(arguments: argparse.Namespace, operator: Operator) -> int:
    keys, unjudged = await exposed_keys(_read(arguments.folder), operator)
    _write_exposed(arguments.folder, keys)
    open_keys = [key for key in keys if key.remedy == exposure_service_pb2.EXPOSURE_REMEDY_NONE]
    say(f"{len(keys) - len(open_keys)} of {len(keys)} exposed keys are replaced or revoked; {len(open_keys)} are not.")
    for account in sorted({_account(key.key.owned_by) for key in open_keys}):
        say(f"  open: {account}")
    return _told(unjudged, FOUND if open_keys else DONE)


async def _report(arguments: argparse.Namespace, operator: Operator) -> int:
    case = _read(arguments.folder)
    audit = operator.stub(audit_service_pb2_grpc.AuditServiceStub)
    kinds = [
        audit_service_pb2.ENTRY_KIND_HALTS_CHANGED,
        audit_service_pb2.ENTRY_KIND_KEYRING_CHANGED,
        audit_service_pb2.ENTRY_KIND_REWRAP_COMPLETED,
        audit_service_pb2.ENTRY_KIND_ROOT_KEY_ROTATED,
        audit_service_pb2.ENTRY_KIND_CORRUPTION_FOUND,
        audit_service_pb2.ENTRY_KIND_CALLER_REFUSED,
    ]
    request = audit_service_pb2.ListEntriesRequest(
        acting_for=account_pb2.Principal(operator_id=operator.actor), kinds=kinds, page_size=1000
    )
    request.start_time.FromDatetime(_time(case.start_time))
    entries = []
    while True:
        page = await audit.ListEntries(request)
        entries += [proved.entry for proved in page.entries]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    keys, unjudged = await exposed_keys(case, operator)
    facts = Facts(
        reason=case.reason,
        start_time=case.start_time,
        contain_time=case.contain_time,
        caller=case.caller,
        kek_version=case.kek_version,
        keys=keys,
        unjudged=unjudged,
        entries=entries,
        checkpoint=page.checkpoint,
        write_time=SystemClock().now(),
    )
    (arguments.folder / REPORT).write_text(report_of(facts), encoding="utf-8")
    say(f"The facts are in {arguments.folder / REPORT}.")
    return _told(unjudged, DONE)


async def _resume(arguments: argparse.Namespace, operator: Operator) -> int:
    case = _read(arguments.folder)
    request = emergency_service_pb2.ResumeRequest(
        request_id=operator.new_request_id(),
        acting_for=account_pb2.Principal(operator_id=operator.actor),
        actor=operator.actor,
        halt_id=case.halt_id,
    )
    await operator.stub(emergency_service_pb2_grpc.EmergencyServiceStub).Resume(request)
    say("Resumed: leases are granted again.")
    return DONE


async def exposed_keys(case: Case, operator: Operator) -> tuple[list[exposure_service_pb2.ExposedKey], str]:
    """Return the exposed keys of a case as they stand now, and what KeyVault says of those that it cannot judge."""
    request = exposure_service_pb2.ListExposedKeysRequest(caller=case.caller)
    request.start_time.FromDatetime(_time(case.start_time))
    request.end_time.FromDatetime(_time(case.contain_time))
    stub = operator.stub(exposure_service_pb2_grpc.ExposureServiceStub)
    keys: list[exposure_service_pb2.ExposedKey] = []
    try:
        async for answer in stub.ListExposedKeys(request):
            keys += answer.keys
    except grpc.aio.AioRpcError as error:
        refused = error_from_rpc(error)
        if refused.reason != "AUTHORITY_CORRUPT":
            raise
        return keys, f"{refused.reason}: {refused.message}"
    return keys, ""


def _told(unjudged: str, code: int) -> int:
    if not unjudged:
        return code
    say_wrong(f"{unjudged} (docs/runbooks/audit-log-corrupt.md)")
    return FAILED


def _write_exposed(folder: Path, keys: list[exposure_service_pb2.ExposedKey]) -> None:
    with (folder / EXPOSED).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(_COLUMNS)
        for each in keys:
            remedy = exposure_service_pb2.ExposureRemedy.Name(each.remedy).removeprefix("EXPOSURE_REMEDY_")
            times = [
                each.first_lease_time.ToJsonString() if each.leases else "",
                each.last_lease_time.ToJsonString() if each.leases else "",
            ]
            key = each.key
            table.writerow(
                [key.key_id, _account(key.owned_by), key.provider, key.fingerprint, remedy, each.leases, *times]
            )


def _account(account: account_pb2.Account) -> str:
    kind = account.WhichOneof("kind")
    return "platform" if kind == "platform" else f"{str(kind).removesuffix('_id')}:{getattr(account, str(kind))}"


def _read(folder: Path) -> Case:
    try:
        return Case(**json.loads((folder / CASE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UsageError(f"{folder / CASE} holds no breach; begin one with: keyvault breach start") from None


def _write(folder: Path, case: Case) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CASE).write_text(json.dumps(asdict(case), indent=2) + "\n", encoding="utf-8")


def _time(written: str) -> datetime:
    try:
        time = datetime.fromisoformat(written)
    except ValueError:
        raise UsageError(f"{written} is no time; write it like 2026-11-25T08:00:00Z") from None
    if time.tzinfo is None:
        raise UsageError(f"{written} names no time zone; write it like 2026-11-25T08:00:00Z")
    return time

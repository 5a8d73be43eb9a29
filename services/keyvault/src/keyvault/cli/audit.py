"""`keyvault audit`: the log, verified by whoever asks.

    verify                    verify the log in the database, with the rows that rest on it
    verify FILE…              verify exports that follow one another; needs no KeyVault
    export --out FILE         write the leaves and the checkpoint that covers them
    list                      what happened, of a key, of an agent or in all
    prove INDEX --out FILE    write an entry with its proof
    check BUNDLE              verify such a file; needs no KeyVault
    checkpoint [--save FILE]  the newest signed checkpoint: keep it where KeyVault cannot reach it

Exit code 0: sound. 1: something was found. 2: it could not be looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from byok.keyvault.v1 import audit_service_pb2, audit_service_pb2_grpc
from byok.type.v1 import account_pb2
from keyvault.cli.audit_files import (
    FileInvalidError,
    bundle_of,
    header_line,
    leaf_line,
    open_for_writing,
    verify_bundle,
    verify_export,
)
from keyvault.cli.operators import DONE, FAILED, FOUND, Operator, UsageError, say, say_wrong
from keyvault.domain.audit_log import decode_leaf
from keyvault.domain.canonical import CanonicalFormError
from transparency.errors import CheckpointInvalidError, ProofInvalidError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyvault.cli.main import Groups

_UNREADABLE = (OSError, FileInvalidError, CheckpointInvalidError)


class _Offline(argparse.Action):
    """Names what a command does when it is given files: it needs no connection then."""

    @override
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        if values:
            namespace.offline = _verify_files


def add_commands(groups: Groups) -> None:
    """Add the commands of the audit log."""
    audit = groups.add_parser("audit", help="verify, export and read the audit log")
    commands = audit.add_subparsers(metavar="command", required=True)
    verify = commands.add_parser("verify", help="verify the log, or exports of it; exit code 1 for findings")
    verify.add_argument("files", metavar="FILE", nargs="*", type=Path, action=_Offline, help="exports, in order")
    verify.add_argument("--checkpoint", metavar="FILE", type=Path, action="append", default=[], help="pinned")
    _add_verifier_keys(verify)
    verify.set_defaults(work=_verify)
    export = commands.add_parser("export", help="write the leaves to a file that can be verified anywhere")
    export.add_argument("--out", metavar="FILE", type=Path, required=True, help="packed if it ends in .gz")
    export.add_argument("--first", metavar="INDEX", type=int, default=1)
    export.add_argument("--last", metavar="INDEX", type=int, default=0)
    export.set_defaults(work=_export)
    listing = commands.add_parser("list", help="what happened")
    listing.add_argument("--key", metavar="ID", default="")
    listing.add_argument("--agent", metavar="ID", default="")
    listing.add_argument("--owner", metavar="ID", default="", help="ask in the name of the owner of --key")
    listing.set_defaults(work=_list)
    prove = commands.add_parser("prove", help="write an entry with its proof")
    prove.add_argument("index", metavar="INDEX", type=int)
    prove.add_argument("--out", metavar="FILE", type=Path, required=True)
    prove.set_defaults(work=_prove)
    check = commands.add_parser("check", help="verify what `prove` wrote")
    check.add_argument("bundle", metavar="BUNDLE", type=Path)
    _add_verifier_keys(check)
    check.set_defaults(offline=_check)
    checkpoint = commands.add_parser("checkpoint", help="the newest signed checkpoint, and the keys that sign")
    checkpoint.add_argument("--save", metavar="FILE", type=Path)
    checkpoint.set_defaults(work=_checkpoint)


def _add_verifier_keys(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verifier-key", metavar="KEY", action="append", default=[], help="pinned; for files")


async def _verify(arguments: argparse.Namespace, operator: Operator) -> int:
    if len(arguments.checkpoint) > 1:
        raise UsageError("name one --checkpoint at most; the log in the database is verified against the others anyway")
    pinned = "".join(_read(path) for path in arguments.checkpoint)
    found = 0
    last = audit_service_pb2.VerifyLogResponse()
    async for last in _stub(operator).VerifyLog(audit_service_pb2.VerifyLogRequest(pinned_checkpoint=pinned)):
        for each in last.findings:
            kind = audit_service_pb2.LogFindingKind.Name(each.kind).removeprefix("LOG_FINDING_KIND_")
            say(f"{each.audit_index}: {kind}: {each.description}{f' ({each.row_id})' if each.row_id else ''}")
        found += len(last.findings)
    say(f"{last.verified_entries:,} entries and {last.verified_rows:,} rows looked at, {found:,} findings.")
    return FOUND if found else DONE


def _verify_files(arguments: argparse.Namespace) -> int:
    if not arguments.verifier_key:
        say_wrong("name --verifier-key as it was pinned: the keys in the file prove nothing")
        return FAILED
    try:
        pinned = [path.read_text(encoding="utf-8") for path in arguments.checkpoint]
        verdict = verify_export(arguments.files, pinned, arguments.verifier_key)
    except _UNREADABLE as error:
        say_wrong(str(error))
        return FAILED
    for line in verdict.found:
        say(line)
    say(f"{verdict.entries:,} entries, {verdict.covered:,} under a signed checkpoint, {len(verdict.found)} findings.")
    say("Leaf seals were not checked: only KeyVault has their key.")
    if not arguments.checkpoint:
        say("No checkpoint was pinned: that the export ends where the log ended is not shown.")
    return FOUND if verdict.found else DONE


async def _export(arguments: argparse.Namespace, operator: Operator) -> int:
    stub = _stub(operator)
    signed = await stub.GetCheckpoint(audit_service_pb2.GetCheckpointRequest(covering_index=arguments.last))
    size = int(signed.checkpoint.split("\n")[1])
    last = arguments.last or size
    request = audit_service_pb2.ExportEntriesRequest(first_index=arguments.first, last_index=last)
    count = 0
    try:
        with open_for_writing(arguments.out) as file:
            header = header_line(
                checkpoint=signed.checkpoint,
                first_index=arguments.first,
                tree_size=size,
                verifier_keys=signed.verifier_keys,
            )
            file.write(header + "\n")
            async for page in stub.ExportEntries(request):
                for each in page.leaves:
                    file.write(leaf_line(each.audit_index, each.leaf, each.leaf_hash) + "\n")
                count += len(page.leaves)
    except OSError as error:
        raise UsageError(f"{arguments.out}: {error.strerror}") from None
    say(f"{count:,} entries written to {arguments.out}.")
    return DONE


async def _list(arguments: argparse.Namespace, operator: Operator) -> int:
    who = account_pb2.Principal(operator_id=operator.actor)
    if arguments.owner:
        who = account_pb2.Principal(owner_id=arguments.owner)
    token = ""
    while True:
        request = audit_service_pb2.ListEntriesRequest(
            acting_for=who, key_id=arguments.key, agent_id=arguments.agent, page_size=1_000, page_token=token
        )
        page = await _stub(operator).ListEntries(request)
        for each in page.entries:
            say(_line(each.entry))
        token = page.next_page_token
        if not token:
            return DONE


async def _prove(arguments: argparse.Namespace, operator: Operator) -> int:
    stub = _stub(operator)
    index = arguments.index
    signed = await stub.GetCheckpoint(audit_service_pb2.GetCheckpointRequest(covering_index=index))
    size = int(signed.checkpoint.split("\n")[1])
    proof = await stub.GetInclusionProof(audit_service_pb2.GetInclusionProofRequest(audit_index=index, tree_size=size))
    leaf = b""
    async for page in stub.ExportEntries(audit_service_pb2.ExportEntriesRequest(first_index=index, last_index=index)):
        leaf = leaf or b"".join(each.leaf for each in page.leaves)
    bundle = bundle_of(index, leaf, proof.leaf_hash, proof=proof.proof, checkpoint=signed.checkpoint)
    _write(arguments.out, bundle + "\n")
    say(f"Entry {index} and its proof written to {arguments.out}. Signed by:")
    for key in signed.verifier_keys:
        say(key)
    return DONE


def _check(arguments: argparse.Namespace) -> int:
    if not arguments.verifier_key:
        say_wrong("name --verifier-key as it was pinned")
        return FAILED
    try:
        index, leaf, checkpoint = verify_bundle(arguments.bundle, arguments.verifier_key)
        entry = decode_leaf(leaf)
    except (ProofInvalidError, CanonicalFormError, CheckpointInvalidError, FileInvalidError) as error:
        say(f"NOT PROVED: {error}")
        return FOUND
    except OSError as error:
        say_wrong(str(error))
        return FAILED
    said = f"{entry.kind.name} at {entry.time.isoformat()} by {entry.caller}"
    say(f"Entry {index} is in {checkpoint.origin} of {checkpoint.size:,} entries: {said}")
    return DONE


async def _checkpoint(arguments: argparse.Namespace, operator: Operator) -> int:
    signed = await _stub(operator).GetCheckpoint(audit_service_pb2.GetCheckpointRequest())
    if arguments.save:
        _write(arguments.save, signed.checkpoint)
    else:
        say(signed.checkpoint)
    for key in signed.verifier_keys:
        say(f"--verifier-key '{key}'")
    return DONE


def _line(entry: audit_service_pb2.Entry) -> str:
    kind = audit_service_pb2.EntryKind.Name(entry.kind).removeprefix("ENTRY_KIND_")
    parts = (entry.key_id, entry.agent_id, entry.lease_id, *(f"{each.name}={each.value}" for each in entry.details))
    time = entry.time.ToDatetime().isoformat(timespec="milliseconds")
    return " ".join((f"{entry.audit_index:>10}", f"{time}Z", kind, entry.actor or entry.caller, *filter(None, parts)))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def _stub(operator: Operator) -> audit_service_pb2_grpc.AuditServiceStub:
    stub: audit_service_pb2_grpc.AuditServiceStub = operator.stub(audit_service_pb2_grpc.AuditServiceStub)
    return stub

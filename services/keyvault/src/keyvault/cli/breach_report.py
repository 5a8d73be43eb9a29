"""The incident report's facts, as text: what the audit log says, and nothing that it does not say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from byok.keyvault.v1 import audit_service_pb2, exposure_service_pb2

ENTRIES_TOLD_MAX: Final = 500


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a report is made of."""

    reason: str
    start_time: str
    contain_time: str
    caller: str
    kek_version: int
    keys: Sequence[exposure_service_pb2.ExposedKey]
    unjudged: str
    entries: Sequence[audit_service_pb2.Entry]
    checkpoint: str
    write_time: datetime


def report_of(facts: Facts) -> str:
    """Return the report, in Markdown."""
    lines = [
        "# Incident: facts",
        "",
        f"Written {facts.write_time.isoformat(timespec='seconds')} from the audit log. Causes, judgement and",
        "the notice to owners are yours to add.",
        "",
        "| | |",
        "|---|---|",
        f"| reason | {facts.reason} |",
        f"| exposed from | {facts.start_time} |",
        f"| contained | {facts.contain_time} |",
        f"| by whom | {facts.caller or 'whoever copied the database'} |",
        f"| KEK | {f'rotated to version {facts.kek_version}' if facts.kek_version else 'not rotated'} |",
        "",
        "## Exposed keys",
        "",
        *_keys(facts.keys),
        *(["", f"Not judged: {facts.unjudged}"] if facts.unjudged else []),
        "",
        "## What the log says",
        "",
        "| index | time | what | by | details |",
        "|---|---|---|---|---|",
        *(_entry(entry) for entry in facts.entries[:ENTRIES_TOLD_MAX]),
        *_cut(len(facts.entries)),
        "",
        "## Checkpoint",
        "",
        "Everything above is in the tree that this checkpoint signs; check it with `keyvault audit verify`.",
        "",
        "```",
        facts.checkpoint.rstrip(),
        "```",
        "",
    ]
    return "\n".join(lines)


def _keys(keys: Sequence[exposure_service_pb2.ExposedKey]) -> list[str]:
    remedies = Counter(_remedy(each) for each in keys)
    by_provider = Counter(each.key.provider for each in keys)
    accounts = {each.key.owned_by.SerializeToString(deterministic=True) for each in keys}
    lines = [f"{len(keys)} keys of {len(accounts)} accounts.", "", "| what | keys |", "|---|---|"]
    lines += [
        f"| {name.removeprefix('EXPOSURE_REMEDY_').lower()} since | {count} |"
        for name, count in sorted(remedies.items())
    ]
    lines += [f"| provider {name} | {count} |" for name, count in by_provider.most_common()]
    leases = sum(each.leases for each in keys)
    return [*lines, *([f"| leases taken | {leases} |"] if leases else [])]


def _remedy(exposed: exposure_service_pb2.ExposedKey) -> str:
    return exposure_service_pb2.ExposureRemedy.Name(exposed.remedy).removeprefix("EXPOSURE_REMEDY_").lower()


def _entry(entry: audit_service_pb2.Entry) -> str:
    kind = audit_service_pb2.EntryKind.Name(entry.kind).removeprefix("ENTRY_KIND_")
    details = ", ".join(f"{detail.name}={detail.value}" for detail in entry.details)
    who = entry.actor or entry.caller
    return f"| {entry.audit_index} | {entry.time.ToJsonString()} | {kind} | {_cell(who)} | {_cell(details)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _cut(entries: int) -> list[str]:
    if entries <= ENTRIES_TOLD_MAX:
        return []
    return ["", f"{entries - ENTRIES_TOLD_MAX} more entries: `keyvault audit list`."]

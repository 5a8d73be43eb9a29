"""The emergency stop: what each scope stops, for whom, who may make and end it, and that nothing pays instead."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio

from byok.keyvault.v1 import emergency_service_pb2, lease_pb2, lease_service_pb2, provider_key_pb2
from byok.type.v1 import account_pb2, operation_pb2
from keyvault.cli.main import run
from keyvault.domain.audit_log import EntryKind, decode_leaf
from servicekit.wire import remote_error
from services.keyvault.tests.integration.test_watching import watching
from services.keyvault.tests.integration.vault import (
    SECRET,
    Vault,
    agent_item,
    create_request,
    halt_request,
    member,
    name,
    new_id,
    owner,
    refusal,
    resume_request,
    share_request,
    validation_item,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Scope = emergency_service_pb2.HaltScope
OPERATOR = account_pb2.Principal(operator_id="op")


class Town:
    """Everything that can be halted: two owners, an organization, two providers, and the platform."""

    def __init__(self, vault: Vault) -> None:
        self.vault = vault
        self.items: dict[str, lease_pb2.LeaseItem] = {}

    async def begin(self) -> None:
        """Make keys of every scope, and an item for each."""
        vault = self.vault
        await vault.bind("agent-1", "owner-1")
        await vault.bind("agent-2", "owner-1")
        await vault.bind("agent-3", "owner-2")
        one = await vault.working_key(acting_for=owner("owner-1"))
        await vault.working_key(acting_for=owner("owner-2"), provider="openai", plaintext=b"sk-" + b"x" * 40)
        await vault.bind("agent-4", "owner-3", account=account_pb2.Account(organization_id="org-1"))
        shared = await vault.organization_key("org-1")
        await (await vault.keys()).ShareKey(share_request(shared.key_id, "agent-4"))
        scope = provider_key_pb2.KEY_SCOPE_PLATFORM
        created = await (await vault.keys("operator")).CreateKey(create_request(acting_for=OPERATOR, scope=scope))
        await (await vault.router()).validate(created.key.key_id)
        platform = lease_pb2.PlatformPurpose(operation=operation_pb2.OPERATION_SAFETY_ESCALATION)
        test_of_shared = lease_pb2.ValidationPurpose(key_id=shared.key_id, acting_for=member("org-1"))
        self.items = {
            "agent-1": agent_item("agent-1"),
            "agent-2": agent_item("agent-2"),
            "agent-3": agent_item("agent-3"),
            "agent-4": agent_item("agent-4"),
            "platform": lease_pb2.LeaseItem(platform=platform),
            "a test of owner-1's key": validation_item(one.key_id),
            "a test of org-1's key": lease_pb2.LeaseItem(validation=test_of_shared),
        }

    async def halted(self) -> dict[str, str]:
        """Ask for every item; return those that are halted, with the scope that is named. The others are granted."""
        router = await self.vault.router()
        response = await router.acquire(*self.items.values())
        halted = {}
        for label, result in zip(self.items, response.results, strict=True):
            if result.WhichOneof("result") == "error":
                error = remote_error(result.error)
                assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "HALTED")
                halted[label] = error.metadata["haltScope"]
            else:
                assert result.WhichOneof("result") == "lease", label
        assert len(router.open(response)) == len(self.items) - len(halted) if response.sealed_leases else True
        return halted


@pytest_asyncio.fixture
async def town(vault: Vault) -> Town:
    """Return a town at a KeyVault of its own."""
    made = Town(vault)
    await made.begin()
    return made


SCOPES: dict[str, tuple[emergency_service_pb2.HaltScope, set[str]]] = {
    "everything": (
        Scope(everything=True),
        {
            "agent-1",
            "agent-2",
            "agent-3",
            "agent-4",
            "platform",
            "a test of owner-1's key",
            "a test of org-1's key",
        },
    ),
    "provider/anthropic": (
        Scope(provider="anthropic"),
        {"agent-1", "agent-2", "agent-4", "platform", "a test of owner-1's key", "a test of org-1's key"},
    ),
    "organization/org-1": (Scope(organization_id="org-1"), {"agent-4", "a test of org-1's key"}),
    "owner/owner-1": (Scope(owner_id="owner-1"), {"agent-1", "agent-2", "a test of owner-1's key"}),
    "agent/agent-1": (Scope(agent_id="agent-1"), {"agent-1"}),
    "platform": (Scope(platform=True), {"platform"}),
}


async def test_a_halt_stops_its_scope_and_nothing_else(town: Town) -> None:
    """One after another: what is in the scope is HALTED, the rest is leased, and after a resume everything is again."""
    emergency = await town.vault.emergency()
    assert await town.halted() == {}
    for label, (scope, expected) in SCOPES.items():
        halt = (await emergency.Halt(halt_request(scope))).halt
        assert (halt.scope, halt.by_operator, halt.reason, halt.actor) == (scope, True, "a test", "test")
        halted = await town.halted()
        assert set(halted) == expected, label
        assert set(halted.values()) == {label}
        resumed = await emergency.Resume(resume_request(halt.halt_id))
        assert resumed.authority_index > halt.authority_index
        assert await town.halted() == {}


async def test_a_halt_is_never_no_usable_key(vault: Vault) -> None:
    """Also where the key is resting or was tried already: the platform's money is not what comes next."""
    await vault.bind()
    key = await vault.working_key()
    await vault.working_key(provider="openai", plaintext=b"sk-" + b"x" * 40, priority=500)
    router, emergency = await vault.router(), await vault.emergency()
    halt = (await emergency.Halt(halt_request(Scope(provider="anthropic")))).halt
    for item in (agent_item(), agent_item(excluded_key_ids=[key.key_id])):
        assert remote_error((await router.acquire(item)).results[0].error).reason == "HALTED"
    named = agent_item(providers=["openai"])
    assert (await router.acquire(named)).results[0].WhichOneof("result") == "lease"
    candidates = lease_service_pb2.ListCandidatesRequest(
        agent=lease_pb2.AgentPurpose(agent_id="agent-1", operation=operation_pb2.OPERATION_CHAT)
    )
    assert (await refusal(router.leases.ListCandidates(candidates))).reason == "HALTED"
    await emergency.Resume(resume_request(halt.halt_id))
    assert (await router.leases.ListCandidates(candidates)).candidates


async def test_another_replica_halts_with_the_first(start_vault: Callable[..., Awaitable[Vault]], vault: Vault) -> None:
    """The set is read anew when it changed, at every replica, and by one that starts later."""
    await vault.bind()
    await vault.working_key()
    other = await start_vault()
    router = await other.router()
    assert (await router.acquire(agent_item())).results[0].WhichOneof("result") == "lease"
    await (await vault.emergency()).Halt(halt_request(Scope(everything=True)))
    for each in (other, await start_vault()):
        answer = await (await each.router()).acquire(agent_item())
        assert remote_error(answer.results[0].error).reason == "HALTED"


async def test_an_owner_halts_what_is_theirs(vault: Vault) -> None:
    """Themselves and their agents; nothing of others, nothing wider; and they see and end what they made."""
    await vault.bind()
    await vault.bind("agent-2", "owner-2")
    edge = await vault.emergency("edge")
    for scope in (Scope(everything=True), Scope(provider="anthropic"), Scope(owner_id="owner-2"), Scope(platform=True)):
        error = await refusal(edge.Halt(halt_request(scope, acting_for=owner())))
        assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    organization = halt_request(Scope(organization_id="org-1"), acting_for=member())
    assert (await refusal(edge.Halt(organization))).reason == "CALLER_NOT_ALLOWED"
    strangers = halt_request(Scope(agent_id="agent-2"), acting_for=owner())
    assert (await refusal(edge.Halt(strangers))).reason == "AGENT_NOT_FOUND"
    mine = [
        (await edge.Halt(halt_request(scope, acting_for=owner()))).halt
        for scope in (Scope(owner_id="owner-1"), Scope(agent_id="agent-1"))
    ]
    assert [halt.by_operator for halt in mine] == [False, False]
    listing = emergency_service_pb2.ListHaltsRequest(acting_for=owner())
    assert list((await edge.ListHalts(listing)).halts) == mine
    others = emergency_service_pb2.ListHaltsRequest(acting_for=owner("owner-2"))
    assert not (await edge.ListHalts(others)).halts
    stranger = resume_request(mine[0].halt_id, acting_for=owner("owner-2"))
    assert (await refusal(edge.Resume(stranger))).reason == "HALT_NOT_FOUND"
    for halt in mine:
        await edge.Resume(resume_request(halt.halt_id, acting_for=owner()))
    assert not (await edge.ListHalts(listing)).halts


async def test_an_owner_cannot_end_what_an_operator_halted(vault: Vault) -> None:
    """Also when the owner halted the same scope before: the operator's stands beside it, until an operator ends it."""
    await vault.bind()
    await vault.working_key()
    edge, operators = await vault.emergency("edge"), await vault.emergency()
    scope = Scope(owner_id="owner-1")
    own = (await edge.Halt(halt_request(scope, acting_for=owner()))).halt
    theirs = (await operators.Halt(halt_request(scope))).halt
    assert own.halt_id != theirs.halt_id
    assert (await operators.Halt(halt_request(scope))).halt == theirs
    error = await refusal(edge.Resume(resume_request(theirs.halt_id, acting_for=owner())))
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    await edge.Resume(resume_request(own.halt_id, acting_for=owner()))
    router = await vault.router()
    assert remote_error((await router.acquire(agent_item())).results[0].error).reason == "HALTED"
    listed = await edge.ListHalts(emergency_service_pb2.ListHaltsRequest(acting_for=owner()))
    assert list(listed.halts) == [theirs]
    await operators.Resume(resume_request(theirs.halt_id))
    assert (await router.acquire(agent_item())).results[0].WhichOneof("result") == "lease"


async def test_repeated_requests_get_the_first_answer(vault: Vault) -> None:
    """Halt and Resume are idempotent by request id; another body under the same id is refused."""
    operators = await vault.emergency()
    request = halt_request(Scope(provider="openai"))
    halt = (await operators.Halt(request)).halt
    ending = resume_request(halt.halt_id)
    ended = await operators.Resume(ending)
    assert await operators.Resume(ending) == ended
    assert (await operators.Halt(request)).halt == halt
    listing = emergency_service_pb2.ListHaltsRequest(acting_for=OPERATOR)
    assert not (await operators.ListHalts(listing)).halts
    error = await refusal(operators.Resume(resume_request(halt.halt_id)))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "HALT_NOT_FOUND")
    request.reason = "another"
    assert (await refusal(operators.Halt(request))).reason == "REQUEST_ID_REUSED"


async def test_watchers_are_told_what_ends(vault: Vault) -> None:
    """A halt of one party names it; any other names nothing, and ends everything that is cached."""
    await vault.bind()
    operators = await vault.emergency()
    named = [
        (Scope(agent_id="agent-1"), ("agent-1", "owner-1", "", False)),
        (Scope(owner_id="owner-1"), ("", "owner-1", "", False)),
        (Scope(organization_id="org-1"), ("", "", "org-1", False)),
        (Scope(platform=True), ("", "", "", True)),
        (Scope(provider="openai"), ("", "", "", False)),
        (Scope(everything=True), ("", "", "", False)),
    ]
    async with watching(vault) as watch:
        watch.ping()
        await watch.until(lambda: len(watch.echoes) == 1)
        answers = [await operators.Halt(halt_request(scope)) for scope, _ in named]
        await watch.until(lambda: len(watch.heard) == len(named))
    assert [answer.acknowledged_watchers for answer in answers] == [1] * len(named)
    assert {change.kind for change in watch.heard} == {lease_service_pb2.AUTHORITY_CHANGE_KIND_HALTS_CHANGED}
    told = [(each.agent_id, each.owner_id, each.organization_id, each.platform) for each in watch.heard]
    assert told == [names for _, names in named]
    rows = await vault.sql("SELECT subject, leaf FROM audit_entries WHERE kind = $1", int(EntryKind.HALTS_CHANGED))
    assert {row["subject"] for row in rows} == {"halts"}
    actions = [dict(decode_leaf(row["leaf"]).details)["action"] for row in rows]
    assert actions == ["begin", *["halt"] * len(named)]


BAD_HALTS: dict[str, dict[str, Any]] = {
    "no scope": {"scope": Scope()},
    "everything, but not": {"scope": Scope(everything=False)},
    "a provider without a name": {"scope": Scope(provider="")},
    "an owner with spaces": {"scope": Scope(owner_id="a b")},
    "no reason": {"reason": " "},
    "a long reason": {"reason": "x" * 201},
    "nobody": {"actor": ""},
    "on nobody's behalf": {"acting_for": account_pb2.Principal()},
    "a request id of another form": {"request_id": "x"},
}


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("fields", BAD_HALTS.values(), ids=BAD_HALTS)
async def test_a_bad_halt_is_refused(shared_vault: Vault, fields: dict[str, Any]) -> None:
    """Typed, with what to send instead; nothing is halted."""
    request = halt_request(**({"scope": Scope(provider=name("provider"))} | fields))
    error = await refusal((await shared_vault.emergency()).Halt(request))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


async def test_owners_cannot_use_up_the_room_for_halts(vault: Vault) -> None:
    """One owner has so many; beyond it the remedy is told, and operators still can."""
    edge, operators = await vault.emergency("edge"), await vault.emergency()
    for number in range(17):
        await vault.bind(f"agent-{number}")
    scopes = [Scope(agent_id=f"agent-{number}") for number in range(17)]
    for scope in scopes[:16]:
        await edge.Halt(halt_request(scope, acting_for=owner()))
    error = await refusal(edge.Halt(halt_request(scopes[16], acting_for=owner())))
    assert error.reason == "INVALID_ARGUMENT"
    assert (await operators.Halt(halt_request(scopes[16]))).halt.by_operator


async def test_an_unknown_halt_is_not_found(vault: Vault) -> None:
    """Typed, with the id."""
    unknown = new_id()
    error = await refusal((await vault.emergency()).Resume(resume_request(unknown)))
    assert (error.reason, error.metadata) == ("HALT_NOT_FOUND", {"haltId": unknown})
    assert SECRET.decode() not in error.message


async def test_the_operators_command_halts_lists_and_resumes(vault: Vault, capsys: pytest.CaptureFixture[str]) -> None:
    """`keyvault halt add`, `list` and `remove`, by the operator's own certificate."""
    tls = vault.ca.issue("operator", uri="spiffe://byok.local/ns/byok/sa/operator")
    connection = [
        "--keyvault", f"localhost:{vault.port}", "--server-name", "localhost", "--actor", "op",
        "--certificate-file", str(tls.certificate), "--private-key-file", str(tls.private_key),
        "--ca-file", str(tls.ca),
    ]  # fmt: skip

    async def command(*words: str) -> tuple[int, str]:
        code = await asyncio.to_thread(run, [*connection, "halt", *words])
        captured = capsys.readouterr()
        return code, captured.err if code == 2 else captured.out

    assert await command("list") == (0, "Nothing is halted.\n")
    code, said = await command("add", "owner:owner-1", "--reason", "a breach")
    assert code == 0
    assert said.startswith("Halted owner:owner-1: no call starts there any more.\n")
    halt_id = said.split()[-1]
    code, said = await command("list")
    assert (code, said.startswith(f"{halt_id}  owner:owner-1  since "), said.endswith("a breach\n")) == (1, True, True)
    assert (await command("remove", halt_id))[0] == 0
    assert await command("list") == (0, "Nothing is halted.\n")
    code, said = await command("add", "street:main", "--reason", "x")
    assert (code, said.startswith("keyvault: name a scope: ")) == (2, True)
    code, said = await command("remove", halt_id)
    assert (code, said.startswith("keyvault: HALT_NOT_FOUND: ")) == (2, True)

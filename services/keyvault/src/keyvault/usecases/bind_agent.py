"""BindAgent: says which owner an agent has and which account it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyvault.domain.audit_log import AuditEntry, EntryKind
from keyvault.domain.bindings import AgentBinding, StoredBinding, rebind
from keyvault.domain.errors import AgentNotFoundError, KekNotPrimaryError, StaleAuthorityError
from keyvault.domain.new_keys import FieldChecks
from keyvault.domain.ownership import Account, AccountKind, check_identifier
from keyvault.domain.requests import RequestBody, request_body
from servicekit.ids import check_request_id

if TYPE_CHECKING:
    from datetime import datetime

    from keyvault.ports import BindingStore, KeyringSource, PutResult
    from keyvault.usecases.agent_bindings import AgentBindings
    from keyvault.usecases.verify_rows import VerifyRows
    from keyvault.usecases.write_authority import WriteBinding
    from servicekit.clock import Clock

RPC: Final = "BindAgent"
ATTEMPTS_MAX: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What is asked for."""

    request_id: str
    caller: str
    actor: str
    agent_id: str
    owner_id: str
    account: Account
    expected_account: Account | None


class BindAgent:
    """Binds an agent, or moves it. What was leased to it before ends."""

    def __init__(
        self,
        *,
        store: BindingStore,
        agents: AgentBindings,
        verify: VerifyRows,
        write: WriteBinding,
        keyring: KeyringSource,
        clock: Clock,
    ) -> None:
        """Write to `store`."""
        self._store = store
        self._agents = agents
        self._verify = verify
        self._write = write
        self._keyring = keyring
        self._clock = clock

    async def __call__(self, asked: Binding) -> StoredBinding:
        """Return the binding in force.

        Raises:
            InvalidArgumentError: naming every field that does not fit.
            RequestIdReusedError: the request id was used with another body.
            AgentAlreadyBoundError: the agent is bound elsewhere than the caller expects.
            AuditUnavailableError: it is not known to be durable.
        """
        now = self._clock.now()
        _check(asked, now)
        body = _body(asked)
        for _ in range(ATTEMPTS_MAX):
            replayed = await self._replayed(body)
            if replayed is not None:
                return replayed
            try:
                result = await self._attempt(asked, body, now)
            except KekNotPrimaryError:
                await self._keyring.reload()
                continue
            if isinstance(result, StoredBinding):
                return result
        raise StaleAuthorityError("the binding changed again and again; retry", agent_id=asked.agent_id)

    async def _attempt(self, asked: Binding, body: RequestBody, now: datetime) -> StoredBinding | PutResult:
        present = await self._agents.present(asked.agent_id)
        binding = rebind(
            None if present is None else present.binding,
            agent_id=asked.agent_id,
            owner_id=asked.owner_id,
            account=asked.account,
            expected=asked.expected_account,
        )
        if present is not None and binding == present.binding:
            return present
        return await self._write(
            binding,
            expected_index=0 if present is None else present.seal.audit_index,
            entry=_entry(asked, binding, now),
            request=body.identity(self._keyring.current()),
        )

    async def _replayed(self, body: RequestBody) -> StoredBinding | None:
        recorded = await self._store.find_request(body.scope, body.request_id)
        if recorded is None:
            return None
        body.ensure_same(self._keyring.current(), recorded)
        row = await self._store.get_binding_at(recorded.resource_id, recorded.audit_index)
        if row is None:
            raise AgentNotFoundError("the agent is not registered", agent_id=recorded.resource_id)
        return await self._verify.binding(row)


def _check(asked: Binding, now: datetime) -> None:
    checks = FieldChecks()
    checks.run(lambda: check_request_id(asked.request_id, now))
    checks.run(lambda: check_identifier("agent_id", asked.agent_id))
    checks.run(lambda: check_identifier("owner_id", asked.owner_id))
    if asked.account.kind is AccountKind.PLATFORM:
        checks.complain("account", "ACCOUNT_IS_PLATFORM", "Send the agent's organization, or else its owner.")
    if asked.account.kind is AccountKind.OWNER and asked.account.party_id != asked.owner_id:
        checks.complain("account", "ACCOUNT_IS_ANOTHER_OWNER", "An account of one owner must be the agent's owner.")
    checks.conclude()


def _entry(asked: Binding, binding: AgentBinding, now: datetime) -> AuditEntry:
    return AuditEntry(
        kind=EntryKind.AGENT_BOUND,
        time=now,
        caller=asked.caller,
        actor=asked.actor,
        agent_id=binding.agent_id,
        account=binding.account,
        details=(("owner_id", binding.owner_id), ("binding_version", str(binding.binding_version))),
    )


def _body(asked: Binding) -> RequestBody:
    expected = asked.expected_account
    fields = (
        asked.agent_id,
        asked.owner_id,
        int(asked.account.kind),
        asked.account.party_id,
        0 if expected is None else int(expected.kind),
        "" if expected is None else expected.party_id,
    )
    return request_body(RPC, f"agent:{asked.agent_id}", asked.request_id, fields)

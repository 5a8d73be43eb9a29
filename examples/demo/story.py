"""The main job of the suite, step by step: each is a call of the public contract, and each refusal is typed."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from byok.keyvault.v1 import key_service_pb2 as keys_pb2
from byok.keyvault.v1 import provider_key_pb2
from byok.metering.v1 import account_service_pb2 as accounts_pb2
from byok.metering.v1 import limit_service_pb2 as limits_pb2
from byok.metering.v1 import usage_service_pb2 as usage_pb2
from byok.router.v1 import operation_result_pb2 as result_pb2
from byok.router.v1 import operation_service_pb2 as operations_pb2
from byok.router.v1 import provider_service_pb2 as providers_pb2
from byok.type.v1 import account_pb2, operation_pb2
from byok_client.client import ByokClient
from byok_client.errors import Held
from byok_client.requests import Attribution, Subject
from examples.demo.screen import Expected, Screen, Stopped, dollars

POLICY: Final = "Nothing that sells FORBIDDEN goods, and no threats."
GUARDRAILS_A_DAY: Final = 3
SETTLED_WITHIN_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOnOffer:
    """A key that the owner will add. An empty base URL is the provider's own address."""

    provider: str
    secret: str = field(repr=False)
    base_url: str = ""

    @property
    def is_real(self) -> bool:
        """Whether the real provider will answer."""
        return not self.base_url


@dataclass(slots=True)
class Tally:
    """What the last line counts."""

    operations: int = 0
    settled: int = 0
    denied: int = 0


class Story:
    """One owner, one agent, and what they live through."""

    def __init__(self, *, platform: ByokClient, edge: ByokClient, screen: Screen, owner: str) -> None:
        """Tell the story of `owner` on `screen`, through the platform's client and the edge's."""
        self._platform = platform
        self._edge = edge
        self._screen = screen
        self._owner_id = f"owner-{owner}"
        self._agent_id = f"agent-{owner}"
        self._principal = account_pb2.Principal(owner_id=self._owner_id)
        self._account = account_pb2.Account(owner_id=self._owner_id)
        self._key_ids: list[str] = []
        self.tally = Tally()

    async def tell(self, offers: list[KeyOnOffer]) -> Tally:
        """Go through all steps and return what was counted.

        Raises:
            Stopped: Something happened that the story does not have.
        """
        await self._register()
        for offer in offers:
            await self._add_key(offer)
        await self._validate()
        await self._judge()
        await self._embed()
        await self._show_ledger()
        await self._reach_the_cap()
        await self._revoke()
        return self.tally

    async def _register(self) -> None:
        self._screen.step("An agent is registered under its owner")
        answer = await self._platform.accounts.register_agent(
            accounts_pb2.RegisterAgentRequest(
                acting_for=self._principal, actor="demo", agent_id=self._agent_id, owner_id=self._owner_id
            )
        )
        account = await self._platform.accounts.get(
            accounts_pb2.GetAccountRequest(account=self._account, acting_for=self._principal)
        )
        self._screen.say(f"{answer.agent.agent_id} belongs to {self._owner_id}, plan {account.account.plan}")

    async def _add_key(self, offer: KeyOnOffer) -> None:
        self._screen.step(f"The owner adds their {offer.provider} key")
        answer = await self._edge.keys.create(
            keys_pb2.CreateKeyRequest(
                acting_for=self._principal,
                actor="demo",
                scope=provider_key_pb2.KEY_SCOPE_OWNER,
                provider=offer.provider,
                base_url=offer.base_url,
                label=f"my {offer.provider} key",
                plaintext=offer.secret.encode(),
            )
        )
        key = answer.key
        self._key_ids.append(key.key_id)
        where = "the real provider" if offer.is_real else "the provider simulator"
        self._screen.say(f"sealed in KeyVault as {key.key_id}, for {key.base_url} ({where})")
        self._screen.say(f"fingerprint {key.fingerprint}, ends in …{key.secret_suffix}: {_state(key)}")

    async def _validate(self) -> None:
        self._screen.step("Each key is validated by a test call")
        for key_id in self._key_ids:
            answer = await self._edge.validate_key(
                providers_pb2.ValidateKeyRequest(acting_for=self._principal, actor="demo", key_id=key_id)
            )
            if answer.verdict != providers_pb2.KEY_VERDICT_VALID:
                message = f"the key was not found valid: {answer.explanation}"
                raise Stopped(message)
            self.tally.operations += 1
            covered = [_operation(each.operation) for each in answer.coverage if each.covered]
            self._screen.say(f"{answer.key.provider}: {_state(answer.key)}; covers {', '.join(covered)}")

    async def _judge(self) -> None:
        self._screen.step("Guardrail evaluations run on the owner's key")
        for content in ("How do I repot a cactus without hurting it?", "Buy FORBIDDEN fireworks here, cheap!"):
            answer = await self._evaluate(content)
            self._screen.say(f"“{content}”")
            self._screen.say(f"  {_verdict(answer)}  {_receipt(answer.receipt)}")

    async def _embed(self) -> None:
        self._screen.step("An embedding runs on the owner's key")
        answer = await self._platform.generate_embeddings(
            ["a cactus in a pot"], attribution=self._attribution("embedding"), purpose="document"
        )
        self.tally.operations += 1
        space = answer.space
        self._screen.say(f"{len(answer.embeddings[0].values)} dimensions in {space.maker}/{space.model}")
        self._screen.say(f"  {_receipt(answer.receipt)}")

    async def _show_ledger(self) -> None:
        self._screen.step("Usage and cost, settled in the ledger")
        summary = await self._settled_summary()
        rows = [
            [
                _operation(row.operation),
                row.model,
                str(row.settled_calls),
                f"{row.input_tokens:,}",
                f"{row.output_tokens:,}",
                dollars(row.settled_cost_nano_usd),
            ]
            for row in summary.rows
        ]
        self._screen.table(["operation", "model", "calls", "input tokens", "output tokens", "cost"], rows)
        self._screen.say(
            f"settled {dollars(summary.settled_cost_nano_usd)}, held {summary.held_cost_nano_usd} nano-USD"
        )

    async def _reach_the_cap(self) -> None:
        self._screen.step(f"A daily cap of {GUARDRAILS_A_DAY} guardrail evaluations stops the next call")
        await self._edge.limits.set(
            limits_pb2.SetLimitRequest(
                acting_for=self._principal,
                actor="demo",
                limit=limits_pb2.Limit(
                    account=self._account,
                    agent_id=self._agent_id,
                    operation=operation_pb2.OPERATION_GUARDRAIL_EVALUATION,
                    unit=limits_pb2.LIMIT_UNIT_CALLS,
                    window=limits_pb2.LIMIT_WINDOW_DAY,
                    enforcement=limits_pb2.LIMIT_ENFORCEMENT_HARD,
                    amount=GUARDRAILS_A_DAY,
                ),
            )
        )
        answer = await self._evaluate("Is it too cold for a cactus outside?")
        self._screen.say(f"number {GUARDRAILS_A_DAY} fits: {_verdict(answer)}")
        with Expected(Held, "CAP_REACHED") as cap:
            await self._evaluate("And in the bathroom?")
        self._denied(cap)

    async def _revoke(self) -> None:
        self._screen.step("The owner revokes the key, and the very next call is refused")
        for key_id in self._key_ids:
            answer = await self._edge.keys.revoke(
                keys_pb2.RevokeKeyRequest(
                    acting_for=self._principal, actor="demo", key_id=key_id, reason="the demo is over"
                )
            )
            self._screen.say(f"{key_id}: {_state(answer.key)}, {answer.acknowledged_watchers} Router acknowledged")
        with Expected(Held, "BYOK_KEY_REQUIRED") as required:
            await self._platform.generate_embeddings(["a cactus"], attribution=self._attribution("after"))
        self._denied(required)

    async def _evaluate(self, content: str) -> operations_pb2.EvaluateGuardrailResponse:
        answer = await self._platform.evaluate_guardrail(
            content, policy_text=POLICY, attribution=self._attribution("submission")
        )
        self.tally.operations += 1
        return answer

    def _attribution(self, subject: str) -> Attribution:
        number = str(self.tally.operations + 1)
        return Attribution(agent_id=self._agent_id, actor="demo", subject=Subject(subject, number))

    def _denied(self, expected: Expected) -> None:
        self.tally.denied += 1
        error = expected.error
        if isinstance(error, Held):
            self._screen.refused(f"{error.reason} ({error.code.name}): {error.message}")

    async def _settled_summary(self) -> usage_pb2.GetUsageSummaryResponse:
        """Wait until the ledger has every operation, and return its sums."""
        request = usage_pb2.GetUsageSummaryRequest(
            account=self._account,
            acting_for=self._principal,
            group_by=[usage_pb2.USAGE_DIMENSION_OPERATION, usage_pb2.USAGE_DIMENSION_MODEL],
        )
        return await _until(
            lambda: self._platform.usage.summary(request),
            lambda answer: _calls(answer) >= self.tally.operations and not answer.held_cost_nano_usd,
        )

    async def count_settled(self) -> int:
        """Wait until the ledger has every operation, and return how many calls are settled in it."""
        return _calls(await self._settled_summary())


def _calls(summary: usage_pb2.GetUsageSummaryResponse) -> int:
    return sum(row.settled_calls for row in summary.rows)


async def _until(
    ask: Callable[[], Awaitable[usage_pb2.GetUsageSummaryResponse]],
    is_enough: Callable[[usage_pb2.GetUsageSummaryResponse], bool],
) -> usage_pb2.GetUsageSummaryResponse:
    ends = time.monotonic() + SETTLED_WITHIN_SECONDS
    while True:
        answer = await ask()
        if is_enough(answer):
            return answer
        if time.monotonic() > ends:
            message = f"the ledger has {_calls(answer)} calls after {SETTLED_WITHIN_SECONDS:.0f} s"
            raise Stopped(message)
        await asyncio.sleep(_POLL_SECONDS)


def _state(key: provider_key_pb2.ProviderKey) -> str:
    return provider_key_pb2.KeyState.Name(key.state).removeprefix("KEY_STATE_")


def _operation(operation: "operation_pb2.Operation.ValueType") -> str:
    return operation_pb2.Operation.Name(operation).removeprefix("OPERATION_").lower().replace("_", " ")


def _verdict(answer: operations_pb2.EvaluateGuardrailResponse) -> str:
    verdict = operations_pb2.GuardrailVerdict.Name(answer.verdict).removeprefix("GUARDRAIL_VERDICT_")
    reasons = "; ".join(finding.reason for finding in answer.findings)
    return f"{verdict} ({reasons})" if reasons else verdict


def _receipt(receipt: result_pb2.OperationReceipt) -> str:
    payer = account_pb2.Payer.Name(receipt.payer).removeprefix("PAYER_").lower()
    settlement = result_pb2.Settlement.Name(receipt.settlement).removeprefix("SETTLEMENT_").lower()
    tokens = sum(each.processed.input_tokens + each.processed.output_tokens for each in receipt.usage.models)
    cost = dollars(receipt.usage.cost_nano_usd)
    return f"[{receipt.provider}/{receipt.model}: {tokens} tokens, {cost}, paid by {payer}, {settlement}]"

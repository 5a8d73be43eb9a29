"""A Router on memory adapters and a scripted provider, for tests that look at what it does with money and keys."""

import hashlib
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import resources
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from catalogue.book import load_catalogue
from catalogue.models import EmbeddingSpace, Operation
from router.adapters.memory import MemoryAdmission, MemoryKeys, MemorySeal
from router.domain.guardrails import GuardrailPrompts
from router.domain.leases import Account, AccountKind, Lease, MappedModel, NoKey, PlatformCause
from router.domain.operations import (
    EmbeddingRequest,
    GuardrailRequest,
    KeyValidationRequest,
    OperationContext,
    Principal,
)
from router.domain.prompts import Prompt
from router.domain.selection import RouteSelection
from router.domain.wire import WireRequest, WireResponse
from router.ports import Attempt, ProviderTransport
from router.providers.price_book import GenaiPriceBook
from router.providers.registry import Codecs
from router.resilience.retrying import RetryBudget, RetryingTransport
from router.usecases.activity import Activity
from router.usecases.costs import Costs
from router.usecases.evaluate_guardrail import EvaluateGuardrail
from router.usecases.generate_embeddings import GenerateEmbeddings
from router.usecases.paid_calls import CallLimits
from router.usecases.provider_calls import ProviderCalls
from router.usecases.questions import Vendors
from router.usecases.validate_key import ValidateKey
from servicekit.ids import new_uuid7
from servicekit.secrets import Secret
from testkit.fake_clock import FakeClock

if TYPE_CHECKING:
    import asyncio

CANARY = "sk-canary-5f0c1d"
OWNER = Account(AccountKind.OWNER, "owner-1")
LIMITS = CallLimits(
    attempt_timeout=timedelta(seconds=30),
    attempts_max=4,
    candidates_max=4,
    lease_losses_max=3,
    attempt_pause=timedelta(0),
    settle_margin=timedelta(milliseconds=50),
    hold_margin=timedelta(seconds=60),
    hold_ttl_max=timedelta(minutes=15),
)
BUDGET = RetryBudget(tries_max=2, delay_min=timedelta(milliseconds=200), delay_max=timedelta(seconds=2), jitter=0.5)
Answer = WireResponse | Exception | Callable[[WireRequest], WireResponse]


def prompts() -> GuardrailPrompts:
    """Return the prompts that ship with the Router."""
    folder = resources.files("router") / "prompts"
    return GuardrailPrompts(
        judge=Prompt("guardrail_v1", (folder / "guardrail_v1.md").read_text()),
        repair=Prompt("guardrail_repair_v1", (folder / "guardrail_repair_v1.md").read_text()),
    )


class ScriptedProvider(ProviderTransport):
    """Answers calls from a script, in order; the last line answers whatever comes after."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.script: list[Answer] = []
        self.requests: list[WireRequest] = []
        self.secrets: list[bytes] = []
        self.hold: asyncio.Event | None = None

    @override
    async def send(self, request: WireRequest, attempt: Attempt, /) -> WireResponse:
        attempt.before_first_byte()
        self.requests.append(request)
        self.secrets.append(attempt.secret.reveal() if attempt.secret else b"")
        if self.hold is not None:
            await self.hold.wait()
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, WireResponse) else answer(request)

    def bodies(self) -> list[dict[str, Any]]:
        """Return what was sent, read as JSON."""
        return [json.loads(request.body) for request in self.requests if request.body]


def reply(body: object, *, status: int = 200, headers: dict[str, str] | None = None) -> WireResponse:
    """Return an HTTP answer with a JSON body."""
    return WireResponse(
        status=status,
        headers=headers or {},
        body=body if isinstance(body, bytes) else json.dumps(body).encode(),
        receive_time=FakeClock().now(),
    )


def completion(
    text: str, *, finish: str = "stop", tokens: tuple[int, int] = (100, 20), refusal: str | None = None
) -> WireResponse:
    """Return a chat completion in OpenAI's form."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    return reply(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": usage,
        }
    )


def verdict(verdict: str = "allow", *, score: float = 0.0, **changes: Any) -> str:
    """Return a verdict in the form that the prompt asks for."""
    return json.dumps({"findings": [], "quotes": [], "score": score, "verdict": verdict, **changes})


def vectors(request: WireRequest) -> WireResponse:
    """Answer an embedding request with unit vectors of the size asked for."""
    asked = json.loads(request.body)
    size = asked.get("dimensions", 1536)
    data = [
        {"object": "embedding", "index": index, "embedding": [1.0] + [0.0] * (size - 1)}
        for index in range(len(asked["input"]))
    ]
    tokens = sum(len(text) for text in asked["input"]) // 4 + 1
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return reply({"object": "list", "data": data, "model": asked["model"], "usage": usage})


def failure(status: int, code: str = "", *, kind: str = "", headers: dict[str, str] | None = None) -> WireResponse:
    """Return an error in OpenAI's form."""
    return reply({"error": {"message": "no", "type": kind, "code": code}}, status=status, headers=headers)


@dataclass(slots=True)
class Workbench:
    """Every part of a Router that a test may want to look at."""

    clock: FakeClock = field(default_factory=FakeClock)
    transport: ProviderTransport | None = None
    limits: CallLimits = LIMITS
    keys: MemoryKeys = field(default_factory=MemoryKeys)
    seal: MemorySeal = field(default_factory=MemorySeal)
    activity: Activity = field(default_factory=Activity)
    admission: MemoryAdmission = field(init=False)
    provider: ScriptedProvider = field(init=False)
    evaluate_guardrail: EvaluateGuardrail = field(init=False)
    generate_embeddings: GenerateEmbeddings = field(init=False)
    validate_key: ValidateKey = field(init=False)
    _ids: Any = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        """Wire the use cases."""
        self.admission = MemoryAdmission(self.clock)
        self.provider = ScriptedProvider(self.clock)
        catalogue = load_catalogue()
        vendors = Vendors(
            codecs=Codecs(),
            catalogue=catalogue,
            costs=Costs(prices=GenaiPriceBook(), catalogue=catalogue, clock=self.clock),
        )
        routes = RouteSelection(catalogue)
        draw = random.Random(7)
        calls = ProviderCalls(
            keys=self.keys,
            admission=self.admission,
            transport=self.transport or RetryingTransport(self.provider, budget=BUDGET, clock=self.clock, draw=draw),
            routes=routes,
            clock=self.clock,
            limits=self.limits,
            activity=self.activity,
        )
        shared: dict[str, Any] = {
            "calls": calls,
            "vendors": vendors,
            "seal": self.seal,
            "clock": self.clock,
            "activity": self.activity,
        }
        self.evaluate_guardrail = EvaluateGuardrail(prompts=prompts(), **shared)
        self.generate_embeddings = GenerateEmbeddings(**shared)
        self.validate_key = ValidateKey(keys=self.keys, routes=routes, prompts=prompts(), **shared)
        self.keys.missing = self.no_key()

    @property
    def deadline(self) -> float:
        """Return a deadline that leaves plenty of time."""
        return self.clock.monotonic() + 60

    def lease(
        self,
        key_id: str = "key-1",
        *,
        provider: str = "openai",
        base_url: str = "https://api.openai.com/v1",
        owned_by: Account = OWNER,
        mapping: dict[Operation, MappedModel] | None = None,
        secret: str = CANARY,
    ) -> Lease:
        """Return a lease that lives for a minute."""
        return Lease(
            lease_id=f"lease-{next(self._ids)}",
            key_id=key_id,
            key_version=1,
            provider=provider,
            base_url=base_url,
            secret=Secret(secret),
            account=owned_by,
            owner_id=owned_by.id,
            agent_id="",
            owned_by=owned_by,
            mapping=mapping or {},
            authority_index=10,
            binding_index=3,
            request_time=self.clock.monotonic(),
            life=timedelta(seconds=60),
        )

    def no_key(self, cause: PlatformCause = PlatformCause.NO_KEY) -> NoKey:
        """Return that the owner has no key."""
        return NoKey(
            cause=cause,
            account=OWNER,
            owner_id=OWNER.id,
            agent_id="",
            authority_index=10,
            binding_index=3,
            request_time=self.clock.monotonic(),
            life=timedelta(seconds=60),
        )

    def context(self, *, request_id: str = "", body: str = "body", agent_id: str = "agent-1") -> OperationContext:
        """Return who an operation is for."""
        return OperationContext(
            request_id=request_id or new_uuid7(self.clock.now()),
            body_hash=hashlib.sha256(body.encode()).digest(),
            agent_id=agent_id,
        )

    def guardrail(self, content: str = "Buy my shoes.", **changes: Any) -> GuardrailRequest:
        """Return a guardrail request."""
        context = changes.pop("context", None) or self.context()
        changes.setdefault("policy_text", "No advertising.")
        return GuardrailRequest(context=context, content=content, **changes)

    def embedding(self, *texts: str, space: EmbeddingSpace | None = None) -> EmbeddingRequest:
        """Return an embedding request."""
        return EmbeddingRequest(context=self.context(), texts=texts or ("hello",), space=space)

    def validation(self, key_id: str = "key-1") -> KeyValidationRequest:
        """Return a request to validate a key."""
        return KeyValidationRequest(
            request_id=new_uuid7(self.clock.now()),
            body_hash=hashlib.sha256(key_id.encode()).digest(),
            acting_for=Principal(owner_id=OWNER.id),
            key_id=key_id,
        )

"""The client of the suite: operations first, the rest beside them.

    async with ByokClient(Targets(router="dns:///router:7000"), tls) as byok:
        answer = await byok.evaluate_guardrail(content, policy_text=policy, attribution=Attribution(agent_id="agent-7"))

A client belongs to one event loop and is made once per process: it keeps its connections, and swaps them when the
certificate on disk is replaced.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import MappingProxyType, TracebackType
from typing import Final, Self

from google.protobuf.message import Message

from byok.router.v1 import operation_service_pb2 as operations_pb2
from byok.router.v1 import provider_service_pb2 as providers_pb2
from byok.router.v1.operation_result_pb2 import DISPOSITION_PROCEED
from byok.router.v1.operation_service_pb2_grpc import OperationServiceStub
from byok.router.v1.provider_service_pb2_grpc import ProviderServiceStub
from byok_client.audit import Audit
from byok_client.calling import Calling, Request, Response, RetryBudget, UnaryMethod
from byok_client.errors import Held, unusable
from byok_client.management import Accounts, Custody, Keys, Limits, ManagementCalls, Usage, identified
from byok_client.requests import Attribution, Space, embeddings_request, guardrail_request
from servicekit.channels import RotatingChannel, open_channel
from servicekit.clock import SystemClock
from servicekit.identity import TlsFiles
from servicekit.wire import RemoteError

_VERDICTS: Final = frozenset(
    {
        operations_pb2.GUARDRAIL_VERDICT_ALLOW,
        operations_pb2.GUARDRAIL_VERDICT_REVIEW,
        operations_pb2.GUARDRAIL_VERDICT_BLOCK,
    }
)
OPERATION_DEADLINE: Final = timedelta(seconds=60)
_NO_RULES: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Where the services are, as gRPC targets. Leave out what this process does not call.

    `server_name` is the name in the servers' certificates, when it is not the target's host.
    """

    router: str = ""
    keyvault: str = ""
    metering: str = ""
    server_name: str | None = None


class NoTargetError(Exception):
    """The client was made without the target of the service that is called."""


class ByokClient:
    """What a platform service calls. Every operation gives an answer that may be used, or raises `Held`."""

    def __init__(self, targets: Targets, tls: TlsFiles, *, retries: RetryBudget | None = None) -> None:
        """Make a client under the identity in `tls`; it connects with its first call.

        Raises:
            CertificateError: The files of `tls` cannot be used.
        """
        self._targets = targets
        self._tls = tls
        self._calling = Calling(budget=retries or RetryBudget(), clock=SystemClock())
        self._management = ManagementCalls(self._calling)
        self._channels: dict[str, RotatingChannel] = {}

    @functools.cached_property
    def keys(self) -> Keys:
        """Provider keys. Raises NoTargetError without a target of KeyVault."""
        return Keys(self._channel("keyvault"), self._management)

    @functools.cached_property
    def accounts(self) -> Accounts:
        """Agents and accounts. Raises NoTargetError without a target of Metering."""
        return Accounts(self._channel("metering"), self._management)

    @functools.cached_property
    def audit(self) -> Audit:
        """KeyVault's audit log, proved. Raises NoTargetError without a target of KeyVault."""
        return Audit(self._channel("keyvault"), self._management)

    @functools.cached_property
    def custody(self) -> Custody:
        """What was witnessed of KeyVault's audit log. Raises NoTargetError without a target of Metering."""
        return Custody(self._channel("metering"), self._management)

    @functools.cached_property
    def limits(self) -> Limits:
        """Limits. Raises NoTargetError without a target of Metering."""
        return Limits(self._channel("metering"), self._management)

    @functools.cached_property
    def usage(self) -> Usage:
        """The ledger. Raises NoTargetError without a target of Metering."""
        return Usage(self._channel("metering"), self._management)

    async def evaluate_guardrail(
        self,
        content: str,
        *,
        attribution: Attribution,
        policy_text: str = "",
        rules: Mapping[str, str] = _NO_RULES,
        deadline: timedelta = OPERATION_DEADLINE,
    ) -> operations_pb2.EvaluateGuardrailResponse:
        """Judge `content` by `policy_text`, or by `rules` (id to description).

        Raises:
            Held: There is no verdict: hold the content.
            ValueError: Both or none of `policy_text` and `rules` were given.
        """
        request = guardrail_request(attribution, content=content, policy_text=policy_text, rules=rules)
        answer = await self._operate(self._operations.EvaluateGuardrail, request, deadline)
        _ensure_proceed(answer.disposition, answer)
        if answer.verdict not in _VERDICTS:
            raise unusable(answer, "Router gave no verdict that this client knows.")
        return answer

    async def generate_embeddings(
        self,
        texts: Sequence[str],
        *,
        attribution: Attribution,
        purpose: str = "",
        space: Space | None = None,
        deadline: timedelta = OPERATION_DEADLINE,
    ) -> operations_pb2.GenerateEmbeddingsResponse:
        """Turn `texts` into vectors of one space.

        Args:
            texts: 1 to 2,048 texts.
            attribution: Who it is for.
            purpose: `document`, `query`, `similarity`, `classification`, `clustering`, or empty.
            space: The space that the vectors must be in.
            deadline: For all tries together.

        Raises:
            Held: There are no vectors.
            ValueError: The purpose is not known.
        """
        request = embeddings_request(attribution, texts=texts, purpose=purpose, space=space)
        answer = await self._operate(self._operations.GenerateEmbeddings, request, deadline)
        _ensure_proceed(answer.disposition, answer)
        if len(answer.embeddings) != len(request.texts):
            raise unusable(answer, f"Router gave {len(answer.embeddings)} vectors for {len(request.texts)} texts.")
        return answer

    async def validate_key(
        self, request: providers_pb2.ValidateKeyRequest, *, deadline: timedelta = OPERATION_DEADLINE
    ) -> providers_pb2.ValidateKeyResponse:
        """Test a key at its provider. A key that the provider rejects is an answer.

        Raises:
            Held: The key could not be tested.
        """
        return await self._operate(self._providers.ValidateKey, identified(request), deadline)

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; operations under way end in `Held`, other calls in `ByokError`."""
        while self._channels:
            _, channel = self._channels.popitem()
            await channel.close()

    @functools.cached_property
    def _operations(self) -> OperationServiceStub:
        return OperationServiceStub(self._channel("router"))

    @functools.cached_property
    def _providers(self) -> ProviderServiceStub:
        return ProviderServiceStub(self._channel("router"))

    async def _operate(self, method: UnaryMethod[Request, Response], request: Request, deadline: timedelta) -> Response:
        try:
            return await self._calling(method, request, deadline=deadline)
        except RemoteError as error:
            raise Held(error) from None

    def _channel(self, service: str) -> RotatingChannel:
        if service not in self._channels:
            target: str = getattr(self._targets, service)
            if not target:
                message = f"the client has no target of {service}; name it in Targets"
                raise NoTargetError(message)
            self._channels[service] = open_channel(target, self._tls, server_name=self._targets.server_name)
        return self._channels[service]


def _ensure_proceed(disposition: int, answer: Message) -> None:
    # A disposition of a newer release is no reason to wave content through.
    if disposition != DISPOSITION_PROCEED:
        raise unusable(answer, "Router answered, and does not say that the answer is usable.")

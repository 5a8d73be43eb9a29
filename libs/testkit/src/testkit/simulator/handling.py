"""Takes one request from its head to the last byte of its answer."""

import asyncio
import hashlib
from datetime import UTC, datetime
from typing import Any

import orjson
from aiohttp import web

from testkit.simulator import delivery
from testkit.simulator.failures import FAILURE_KINDS, failure_of, stream_error
from testkit.simulator.faults import Call, FaultKind, FaultRule
from testkit.simulator.ledger import LedgerEntry, key_fingerprint, marker_of
from testkit.simulator.rendering import METHODS, render
from testkit.simulator.replies import JSON, Making, Reply
from testkit.simulator.state import SimulatorState
from testkit.simulator.vendors import ENDPOINTS, Dialect, Endpoint, Route, Vendor

# Wrong or late, but sent whole.
_WHOLE_ANSWERS = frozenset(
    {
        FaultKind.OFF_SCHEMA,
        FaultKind.REFUSAL,
        FaultKind.CUT_SHORT,
        FaultKind.NO_USAGE,
        FaultKind.EMPTY_ANSWER,
        FaultKind.DELAY,
        FaultKind.SLOW_HEADERS,
    }
)
# The vendor has done its work when these strike, and charges for it.
_BILLED_DELIVERIES = frozenset(
    {
        FaultKind.MALFORMED_JSON,
        FaultKind.TRUNCATED_BODY,
        FaultKind.EMPTY_BODY,
        FaultKind.ODD_SHAPE,
        FaultKind.STALL_MID_STREAM,
        FaultKind.RESET_AFTER_READ,
        FaultKind.ERROR_MID_STREAM,
    }
)
_NEEDS_MODEL = frozenset(Route) - {Route.MODELS, Route.OLLAMA_TAGS, Route.OLLAMA_VERSION}
_KEYLESS = frozenset({"ollama"})


class RequestHandler:
    """The whole simulator behind one aiohttp route."""

    def __init__(self, state: SimulatorState) -> None:
        """Serve from the given state."""
        self._state = state

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        endpoint = ENDPOINTS.get(request.path)
        if endpoint is None or request.method != METHODS[endpoint.route]:
            return web.json_response({"error": {"message": f"Unknown request URL: {request.path}"}}, status=404)
        if request.path == "/v1/models" and "anthropic-version" in request.headers:
            endpoint = ENDPOINTS["/anthropic/v1/models"]
        entry = self._state.ledger.open(vendor=endpoint.vendor.slug, route=endpoint.route, path=request.path)
        key = _key_of(endpoint.vendor, request)
        entry.key_fingerprint = key_fingerprint(key) if key else ""
        call = Call(vendor=entry.vendor, route=entry.route, key=key, key_fingerprint=entry.key_fingerprint)
        fault = self._state.faults.take(call, is_read=False)
        if fault is not None:
            entry.fault = fault.kind
            return delivery.reset(request)
        body = await request.read()
        parsed = _parsed(body)
        _describe(entry, body, parsed)
        call = Call(
            vendor=call.vendor,
            route=call.route,
            key=key,
            key_fingerprint=call.key_fingerprint,
            model=entry.model,
            body=body,
        )
        fault = self._state.faults.take(call, is_read=True)
        exchange = _Exchange(request, endpoint, entry, key, self._state)
        return await exchange.run(parsed, fault)


class _Exchange:
    """One request that was read, on its way to an answer."""

    def __init__(
        self, request: web.Request, endpoint: Endpoint, entry: LedgerEntry, key: str, state: SimulatorState
    ) -> None:
        self._request = request
        self._endpoint = endpoint
        self._entry = entry
        self._key = key
        self._state = state

    async def run(self, parsed: dict[str, Any] | None, fault: FaultRule | None) -> web.StreamResponse:
        if fault is not None:
            self._entry.fault = fault.kind
        refusal = self._refusal(parsed)
        if refusal is not None and (fault is None or fault.kind not in FAILURE_KINDS):
            return await self._fail(refusal)
        if fault is None:
            await self._state.think()
            return await self._answer(render(self._endpoint, parsed or {}, self._making()))
        return await self._strike(parsed or {}, fault)

    async def _strike(self, parsed: dict[str, Any], fault: FaultRule) -> web.StreamResponse:
        kind = fault.kind
        if kind in FAILURE_KINDS:
            return await self._fail(fault)
        if kind is FaultKind.ECHO_KEY:
            return await self._echo_key(fault)
        if kind is FaultKind.ERROR_IN_200:
            return await self._fail(fault, status=200)
        if kind in (FaultKind.DELAY, FaultKind.SLOW_HEADERS):
            await asyncio.sleep(fault.delay_seconds)
        else:
            await self._state.think()
        reply = render(self._endpoint, parsed, self._making(fault))
        if kind in _WHOLE_ANSWERS:
            return await self._answer(reply)
        return await self._break(reply, fault)

    async def _break(self, reply: Reply, fault: FaultRule) -> web.StreamResponse:
        if fault.kind in _BILLED_DELIVERIES:
            self._bill(reply)
        if fault.kind is FaultKind.RESET_AFTER_READ:
            return delivery.reset(self._request)
        if fault.kind is FaultKind.ERROR_MID_STREAM:
            return await self._fail_mid_stream(reply, fault)
        self._entry.status = 307 if fault.kind is FaultKind.REDIRECT else 200
        return await delivery.send_broken(self._request, reply, fault)

    async def _answer(self, reply: Reply) -> web.StreamResponse:
        self._entry.status = reply.status
        self._bill(reply)
        response = await delivery.send(self._request, reply)
        self._entry.is_sent = True
        return response

    async def _fail(self, fault: FaultRule, *, status: int | None = None) -> web.StreamResponse:
        failure = failure_of(self._endpoint.vendor, fault, model=self._entry.model, key=self._key, now=_now())
        reply = Reply(
            status=status or failure.status,
            content_type=JSON,
            chunks=[orjson.dumps(failure.body)],
            headers=dict(failure.headers),
        )
        return await self._answer(reply)

    async def _fail_mid_stream(self, reply: Reply, fault: FaultRule) -> web.StreamResponse:
        if not reply.is_streaming:
            return await self._fail(fault, status=200)
        failure = failure_of(self._endpoint.vendor, fault, model=self._entry.model, key=self._key, now=_now())
        self._entry.status = 200
        return await delivery.send_error_mid_stream(self._request, reply, stream_error(self._endpoint.vendor, failure))

    async def _echo_key(self, fault: FaultRule) -> web.StreamResponse:
        """Do what a careless vendor, or a proxy before it, does: say the key back."""
        message = f"Incorrect API key provided: {self._key}. Authorization: Bearer {self._key}"
        error = {"message": message, "type": "invalid_request_error", "code": "invalid_api_key", "param": self._key}
        body = {"type": "error", "error": error, "message": message}
        headers = {"x-echo-authorization": f"Bearer {self._key}"}
        reply = Reply(status=fault.status, content_type=JSON, chunks=[orjson.dumps(body)], headers=headers)
        return await self._answer(reply)

    def _refusal(self, parsed: dict[str, Any] | None) -> FaultRule | None:
        """Return what is wrong with the request itself, as the failure by which the vendor says so."""
        vendor, route = self._endpoint.vendor, self._endpoint.route
        if vendor.slug not in _KEYLESS and not self._state.accepts(vendor, self._key):
            return FaultRule(kind=FaultKind.BAD_KEY)
        if route in _NEEDS_MODEL and (parsed is None or not parsed.get("model")):
            return FaultRule(kind=FaultKind.BAD_REQUEST)
        if route is Route.MODELS and not self._state.has_models_listing:
            return FaultRule(kind=FaultKind.FORBIDDEN)
        if "nonexistent" in self._entry.model:
            return FaultRule(kind=FaultKind.MODEL_GONE)
        return None

    def _bill(self, reply: Reply) -> None:
        if reply.status == 200:  # noqa: PLR2004  # Nobody charges for a refusal.
            self._entry.input_tokens = reply.input_tokens
            self._entry.output_tokens = reply.output_tokens

    def _making(self, fault: FaultRule | None = None) -> Making:
        kind = None if fault is None else fault.kind
        return Making(
            call_id=self._entry.call_id,
            now=int(_now().timestamp()),
            is_off_schema=kind is FaultKind.OFF_SCHEMA,
            is_refusal=kind is FaultKind.REFUSAL,
            is_cut_short=kind is FaultKind.CUT_SHORT,
            has_usage=kind is not FaultKind.NO_USAGE,
            is_empty=kind is FaultKind.EMPTY_ANSWER,
        )


def _now() -> datetime:
    return datetime.now(UTC)


def _key_of(vendor: Vendor, request: web.Request) -> str:
    # Anthropic takes a key in either header, and its SDK has used both.
    if vendor.dialect is Dialect.ANTHROPIC and "x-api-key" in request.headers:
        return request.headers["x-api-key"]
    return request.headers.get("authorization", "").removeprefix("Bearer ")


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _describe(entry: LedgerEntry, body: bytes, parsed: dict[str, Any] | None) -> None:
    entry.marker = marker_of(body)
    entry.content_sha256 = hashlib.sha256(body).hexdigest()
    if parsed is not None:
        entry.model = str(parsed.get("model", ""))
        entry.is_streaming = bool(parsed.get("stream"))

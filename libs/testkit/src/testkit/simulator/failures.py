"""How each vendor puts a failure, from recordings and from what users report of them.

The status alone says little: no credit is 400 at Anthropic, 429 at OpenAI, 402 at DeepSeek, 412 at Fireworks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import orjson

from testkit.simulator.faults import FaultKind, FaultRule, RetryForm
from testkit.simulator.vendors import Dialect, Vendor


@dataclass(frozen=True)
class Failure:
    """A failure as it goes over the wire."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Words:
    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None


_K = FaultKind

_ANTHROPIC: dict[FaultKind, _Words] = {
    _K.BAD_KEY: _Words(401, "invalid x-api-key", "authentication_error"),
    _K.NO_CREDIT: _Words(
        400,
        "Your credit balance is too low to access the Anthropic API. "
        "Please go to Plans & Billing to upgrade or purchase credits.",
    ),
    _K.PAYMENT_REQUIRED: _Words(402, "There is an issue with your billing or payment information.", "billing_error"),
    _K.FORBIDDEN: _Words(
        403, "Your API key does not have permission to use the specified resource.", "permission_error"
    ),
    _K.CONTENT_REFUSED: _Words(400, "Output blocked by content filtering policy"),
    _K.MODEL_GONE: _Words(404, "model: {model}", "not_found_error"),
    _K.TIMED_OUT: _Words(408, "Request timed out.", "timeout_error"),
    _K.CONFLICT: _Words(409, "The request conflicts with another one.", "conflict_error"),
    _K.TOO_LARGE: _Words(413, "Request exceeds the maximum allowed number of bytes.", "request_too_large"),
    _K.BAD_REQUEST: _Words(400, "messages: at least one message is required"),
    _K.THROTTLED: _Words(
        429,
        "This request would exceed your organization's rate limit of 50 requests per minute. For details, refer to: "
        "https://docs.claude.com/en/api/rate-limits.",
        "rate_limit_error",
    ),
    _K.DAILY_QUOTA: _Words(
        429,
        "This request would exceed your organization's daily rate limit of 1,000,000 input tokens per day.",
        "rate_limit_error",
    ),
    _K.SERVER_ERROR: _Words(500, "Internal server error", "api_error"),
    _K.BAD_GATEWAY: _Words(502, "Bad gateway", "api_error"),
    _K.UNAVAILABLE: _Words(503, "Service temporarily unavailable", "api_error"),
    _K.OVERLOADED: _Words(529, "Overloaded", "overloaded_error"),
}

_OPENAI: dict[FaultKind, _Words] = {
    _K.BAD_KEY: _Words(
        401,
        "Incorrect API key provided: {masked}. "
        "You can find your API key at https://platform.openai.com/account/api-keys.",
        code="invalid_api_key",
    ),
    _K.NO_CREDIT: _Words(
        429,
        "You exceeded your current quota, please check your plan and billing details. For more information on this "
        "error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
        "insufficient_quota",
        "insufficient_quota",
    ),
    _K.PAYMENT_REQUIRED: _Words(402, "Payment is required to use this model.", "billing_error", "payment_required"),
    _K.FORBIDDEN: _Words(
        403,
        "Country, region, or territory not supported",
        "request_forbidden",
        "unsupported_country_region_territory",
    ),
    _K.CONTENT_REFUSED: _Words(
        400,
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
        code="invalid_prompt",
    ),
    _K.MODEL_GONE: _Words(
        404, "The model `{model}` does not exist or you do not have access to it.", code="model_not_found"
    ),
    _K.TIMED_OUT: _Words(408, "Request timed out.", "timeout", "timeout"),
    _K.CONFLICT: _Words(409, "The resource was updated by another process.", "conflict"),
    _K.TOO_LARGE: _Words(413, "Maximum request body size exceeded.", code="request_too_large"),
    _K.BAD_REQUEST: _Words(
        400, "Unsupported value: 'temperature' does not support 0.0 with this model.", code="unsupported_value"
    ),
    _K.THROTTLED: _Words(
        429,
        "Rate limit reached for {model} in organization org-simulated on tokens per min (TPM): Limit 30000, Used "
        "29500, Requested 1200. Please try again in {delay}. "
        "Visit https://platform.openai.com/account/rate-limits to learn more.",
        "tokens",
        "rate_limit_exceeded",
    ),
    _K.DAILY_QUOTA: _Words(
        429,
        "Rate limit reached for {model} in organization org-simulated on requests per day (RPD): Limit 10000, Used "
        "10000, Requested 1. Please try again in {delay}.",
        "requests",
        "rate_limit_exceeded",
    ),
    _K.SERVER_ERROR: _Words(
        500, "The server had an error while processing your request. Sorry about that!", "server_error"
    ),
    _K.BAD_GATEWAY: _Words(502, "Bad gateway.", "server_error"),
    _K.UNAVAILABLE: _Words(
        503, "The engine is currently overloaded, please try again later", "service_unavailable_error"
    ),
    _K.OVERLOADED: _Words(529, "The server is overloaded", "overloaded_error"),
}

_GROQ = _OPENAI | {
    _K.BAD_KEY: _Words(401, "Invalid API Key", code="invalid_api_key"),
    _K.NO_CREDIT: _Words(
        400,
        "Organization has been restricted. Please reach out to support if you believe this was in error.",
        code="organization_restricted",
    ),
    _K.THROTTLED: _Words(
        429,
        "Rate limit reached for model `{model}` in organization `org_simulated` service tier `on_demand` on tokens per "
        "minute (TPM): Limit 6000, Used 5600, Requested 1200. Please try again in {delay}. "
        "Visit https://console.groq.com/docs/rate-limits for more information.",
        "tokens",
        "rate_limit_exceeded",
    ),
    _K.TOO_LARGE: _Words(
        413,
        "Request too large for model `{model}` in organization `org_simulated` service tier `on_demand` on tokens per "
        "minute (TPM): Limit 6000, Requested 9000, please reduce your message size and try again.",
        "tokens",
        "rate_limit_exceeded",
    ),
    _K.UNAVAILABLE: _Words(
        503, "{model} is currently over capacity. Please try again and back off exponentially.", "internal_server_error"
    ),
}

_TOGETHER = _OPENAI | {
    _K.BAD_KEY: _Words(
        401,
        "Invalid API key provided. You can find your API key at https://api.together.xyz/settings/api-keys.",
        code="invalid_api_key",
    ),
    _K.NO_CREDIT: _Words(
        402,
        "Credit limit exceeded, please navigate to https://api.together.ai/settings/billing to update your "
        "credit limit.",
        "credit_limit",
    ),
    _K.MODEL_GONE: _Words(
        404,
        "Unable to access model {model}. Please visit https://api.together.ai/models to view the list of supported "
        "models.",
        code="model_not_available",
    ),
    _K.THROTTLED: _Words(
        429,
        "You have reached the rate limit specific to this model {model}. The maximum rate limit for this model is 6.0 "
        "queries per minute.",
        "model_rate_limit",
    ),
    _K.UNAVAILABLE: _Words(
        503, "The server is overloaded or not ready yet.", "service_unavailable", "service_unavailable"
    ),
}

_FIREWORKS = _OPENAI | {
    _K.BAD_KEY: _Words(401, "The API key you provided is invalid.", "error", "UNAUTHORIZED"),
    _K.NO_CREDIT: _Words(
        412,
        "Account simulated is suspended, possibly due to reaching the monthly spending limit or failure to pay past "
        "invoices. Please go to https://fireworks.ai/account/billing for more information.",
        "error",
        "PRECONDITION_FAILED",
    ),
    _K.MODEL_GONE: _Words(404, "Model not found, inaccessible, and/or not deployed", "error", "NOT_FOUND"),
    _K.THROTTLED: _Words(
        429, "Request didn't generate first token before the given deadline", "error", "RATE_LIMIT_EXCEEDED"
    ),
}

_DEEPSEEK = _OPENAI | {
    _K.BAD_KEY: _Words(
        401, "Authentication Fails, Your api key: {last4} is invalid", "authentication_error", "invalid_request_error"
    ),
    _K.NO_CREDIT: _Words(402, "Insufficient Balance", "unknown_error", "invalid_request_error"),
    _K.MODEL_GONE: _Words(400, "Model Not Exist", code="invalid_request_error"),
    _K.CONTENT_REFUSED: _Words(400, "Content Exists Risk", code="invalid_request_error"),
    _K.THROTTLED: _Words(429, "Rate limit reached", "rate_limit_error", "rate_limit_reached"),
    _K.UNAVAILABLE: _Words(
        503,
        "Service is too busy. We advise users to temporarily switch to alternative LLM API service providers.",
        "service_unavailable_error",
    ),
}

_CEREBRAS = _OPENAI | {
    _K.BAD_KEY: _Words(401, "Wrong API Key", code="wrong_api_key"),
    _K.NO_CREDIT: _Words(
        402, "Payment required to access this resource.", "payment_required_error", "payment_required"
    ),
    _K.MODEL_GONE: _Words(
        404, "Model {model} does not exist or you do not have access to it.", "not_found_error", "model_not_found"
    ),
    _K.THROTTLED: _Words(
        429,
        "Requests per minute limit exceeded - too many requests sent.",
        "too_many_requests_error",
        "request_quota_exceeded",
    ),
    _K.DAILY_QUOTA: _Words(
        429,
        "Tokens per day limit exceeded - too many tokens processed.",
        "too_many_tokens_error",
        "token_quota_exceeded",
    ),
    _K.OVERLOADED: _Words(
        429,
        "We're experiencing high traffic right now! Please try again soon.",
        "too_many_requests_error",
        "queue_exceeded",
    ),
}

_OPENROUTER = _OPENAI | {
    _K.BAD_KEY: _Words(401, "User not found."),
    _K.NO_CREDIT: _Words(402, "Insufficient credits. Add more using https://openrouter.ai/settings/credits"),
    _K.PAYMENT_REQUIRED: _Words(
        402,
        "This request requires more credits, or fewer max_tokens. You requested up to 4096 tokens, but can only afford "
        "80. To increase, visit https://openrouter.ai/settings/credits and upgrade to a paid account",
    ),
    _K.FORBIDDEN: _Words(403, "Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys"),
    _K.CONTENT_REFUSED: _Words(403, "Your chosen model requires moderation and your input was flagged"),
    _K.MODEL_GONE: _Words(404, "No endpoints found for {model}."),
    _K.THROTTLED: _Words(429, "Provider returned error"),
    _K.DAILY_QUOTA: _Words(
        429, "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests per day"
    ),
    _K.BAD_GATEWAY: _Words(502, "Provider returned error"),
    _K.UNAVAILABLE: _Words(503, "No instances available"),
    _K.OVERLOADED: _Words(529, "Provider returned error"),
}

_OLLAMA: dict[FaultKind, _Words] = {
    _K.BAD_KEY: _Words(401, "unauthorized"),
    _K.NO_CREDIT: _Words(402, "you have reached your weekly usage limit, upgrade for higher limits"),
    _K.PAYMENT_REQUIRED: _Words(402, "this model requires a subscription, upgrade for access"),
    _K.FORBIDDEN: _Words(403, "forbidden"),
    _K.CONTENT_REFUSED: _Words(400, "invalid request"),
    _K.MODEL_GONE: _Words(404, "model '{model}' not found"),
    _K.TIMED_OUT: _Words(408, "timed out waiting for llama runner to start"),
    _K.CONFLICT: _Words(409, "conflict"),
    _K.TOO_LARGE: _Words(413, "http: request body too large"),
    _K.BAD_REQUEST: _Words(400, '"{model}" does not support chat'),
    _K.THROTTLED: _Words(429, "too many concurrent requests"),
    _K.DAILY_QUOTA: _Words(429, "you've reached your hourly usage limit"),
    _K.SERVER_ERROR: _Words(500, "llama runner process has terminated: exit status 2"),
    _K.BAD_GATEWAY: _Words(502, "bad gateway"),
    _K.UNAVAILABLE: _Words(503, "server busy, please try again.  maximum pending requests exceeded"),
    _K.OVERLOADED: _Words(503, "Server overloaded, please retry shortly (ref: 00000000-0000-4000-8000-000000000000)"),
}

_WORDS = {
    "anthropic": _ANTHROPIC,
    "openai": _OPENAI,
    "groq": _GROQ,
    "together": _TOGETHER,
    "fireworks": _FIREWORKS,
    "deepseek": _DEEPSEEK,
    "cerebras": _CEREBRAS,
    "openrouter": _OPENROUTER,
    "ollama": _OLLAMA,
}

FAILURE_KINDS = frozenset(_ANTHROPIC)
_RETRYABLE = frozenset(
    {
        _K.TIMED_OUT,
        _K.CONFLICT,
        _K.THROTTLED,
        _K.DAILY_QUOTA,
        _K.SERVER_ERROR,
        _K.BAD_GATEWAY,
        _K.UNAVAILABLE,
        _K.OVERLOADED,
    }
)


def failure_of(vendor: Vendor, rule: FaultRule, *, model: str, key: str, now: datetime) -> Failure:
    """Return the vendor's answer for a failure, with the time to come back in the form that the rule asks for."""
    kind = rule.failure if rule.kind in (_K.ERROR_IN_200, _K.ERROR_MID_STREAM) else rule.kind
    words = _WORDS[vendor.slug][kind]
    message = words.message.format(
        model=model, masked=_masked(key), last4=f"****{key[-4:]}", delay=f"{rule.retry_after_seconds:g}s"
    )
    body = _envelope(vendor, words, message)
    headers: dict[str, str] = {}
    if kind in _RETRYABLE:
        if rule.retry_form is RetryForm.RETRY_DELAY_IN_BODY:
            body = _google_body(words.status, message, rule.retry_after_seconds)
        else:
            headers = retry_headers(vendor, rule, now)
    return Failure(words.status, body, headers)


def retry_headers(vendor: Vendor, rule: FaultRule, now: datetime) -> dict[str, str]:
    """Return the headers that say when to come back."""
    seconds = rule.retry_after_seconds
    at = now + timedelta(seconds=seconds)
    match rule.retry_form:
        case RetryForm.SECONDS:
            return {"retry-after": str(math.ceil(seconds))}
        case RetryForm.HTTP_DATE:
            return {"retry-after": format_datetime(at.astimezone(UTC), usegmt=True)}
        case RetryForm.MILLISECONDS:
            return {"retry-after-ms": str(math.ceil(seconds * 1_000))}
        case RetryForm.RESET_DURATION:
            return {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": _go_duration(seconds)}
        case RetryForm.RESET_TIMESTAMP:
            prefix = "anthropic-ratelimit-requests" if vendor.dialect is Dialect.ANTHROPIC else "x-ratelimit-requests"
            return {f"{prefix}-remaining": "0", f"{prefix}-reset": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
        case RetryForm.EPOCH_MILLISECONDS:
            return {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(int(at.timestamp() * 1_000))}
        case _:
            return {}


def stream_error(vendor: Vendor, failure: Failure) -> bytes:
    """Return the bytes by which the vendor reports a failure after it has begun to answer."""
    body = orjson.dumps(failure.body)
    if vendor.dialect is Dialect.OLLAMA:
        return body + b"\n"
    if vendor.dialect is Dialect.ANTHROPIC or vendor.slug == "groq":
        return b"event: error\ndata: " + body + b"\n\n"
    return b"data: " + body + b"\n\n"


def _envelope(vendor: Vendor, words: _Words, message: str) -> Any:
    if vendor.dialect is Dialect.ANTHROPIC:
        error = {"type": words.type, "message": message}
        return {"type": "error", "error": error, "request_id": "req_011CSimulated000000000000"}
    if vendor.dialect is Dialect.OLLAMA:
        return {"error": message}
    if vendor.slug == "cerebras":
        return {"message": message, "type": words.type, "param": "key", "code": words.code}
    if vendor.slug == "openrouter":
        metadata = {"raw": "upstream says no", "provider_name": "OpenAI"} if message.startswith("Provider") else None
        return {"error": {"message": message, "code": words.status} | ({"metadata": metadata} if metadata else {})}
    return {"error": {"message": message, "type": words.type, "param": None, "code": words.code}}


def _google_body(status: int, message: str, seconds: float) -> Any:
    """Return Gemini's form, which alone puts the time to come back into the body."""
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{seconds:g}s"}]
    return {"error": {"code": status, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}}


def _go_duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1_000:g}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"


def _masked(key: str) -> str:
    return f"{key[:8]}{'*' * 12}{key[-4:]}"

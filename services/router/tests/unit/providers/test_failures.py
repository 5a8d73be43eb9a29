"""What an error answer means: the body before the status, and never a word of it repeated."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from catalogue.models import Dialect, Model
from router.domain import errors
from router.domain.routes import Route
from router.domain.wire import WireResponse
from router.providers.registry import Codecs

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
CODECS = Codecs()
CANARY = "sk-canary-0123456789"
DIALECTS = {"anthropic": Dialect.ANTHROPIC_MESSAGES, "ollama": Dialect.OLLAMA}


def _route(provider: str) -> Route:
    return Route(
        provider=provider,
        dialect=DIALECTS.get(provider, Dialect.OPENAI_CHAT),
        base_url="https://provider.test",
        model=Model(provider=provider, model_id="m"),
    )


def _classify(
    provider: str, status: int, body: dict[str, Any] | bytes, headers: dict[str, str] | None = None
) -> errors.ProviderError:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    response = WireResponse(status=status, headers=headers or {}, body=data, receive_time=NOW)
    return CODECS.chat(_route(provider)).classify(response, _route(provider))


def _error(message: str, kind: str = "", code: str = "", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code, **more}}


CASES = [
    (
        "anthropic",
        400,
        _error("Your credit balance is too low to access", "invalid_request_error"),
        errors.NoCreditError,
    ),
    (
        "anthropic",
        400,
        _error("You have reached your specified API usage limits.", "invalid_request_error"),
        errors.DailyQuotaError,
    ),
    (
        "anthropic",
        429,
        {
            "error": {
                "type": "rate_limit_error",
                "message": "x",
                "details": {"error_code": "enforced_spend_limit_reached"},
            }
        },
        errors.NoCreditError,
    ),
    (
        "anthropic",
        403,
        {"error": {"type": "permission_error", "message": "x", "details": {"error_code": "organization_on_hold"}}},
        errors.KeyRejectedError,
    ),
    (
        "anthropic",
        400,
        _error("prompt is too long: 210000 tokens > 200000 maximum", "invalid_request_error"),
        errors.ContextExceededError,
    ),
    ("anthropic", 404, _error("model: claude-x", "not_found_error"), errors.ModelGoneError),
    ("anthropic", 500, _error("Internal", "api_error"), errors.ProviderUnavailableError),
    (
        "openai",
        429,
        _error("You exceeded your current quota", "insufficient_quota", "insufficient_quota"),
        errors.NoCreditError,
    ),
    (
        "openai",
        400,
        _error("Billing hard limit has been reached", "invalid_request_error", "billing_hard_limit_reached"),
        errors.NoCreditError,
    ),
    ("openai", 400, _error("x", "invalid_request_error", "context_length_exceeded"), errors.ContextExceededError),
    (
        "openai",
        403,
        _error("Project does not have access to model", "invalid_request_error", "model_not_found"),
        errors.ModelGoneError,
    ),
    (
        "openai",
        401,
        _error("You have insufficient permissions for this operation. Missing scopes: model.request"),
        errors.PermissionRefusedError,
    ),
    (
        "openai",
        429,
        _error("Request too large for gpt-4o in organization org-x on tokens per min", "tokens", "rate_limit_exceeded"),
        errors.ContextExceededError,
    ),
    ("openai", 422, _error("odd"), errors.BadRequestError),
    (
        "groq",
        400,
        _error("The model `m` has been decommissioned", "invalid_request_error", "model_decommissioned"),
        errors.ModelGoneError,
    ),
    (
        "groq",
        400,
        _error("Failed to generate JSON.", "invalid_request_error", "json_validate_failed"),
        errors.GenerationRejectedError,
    ),
    ("groq", 498, _error("capacity"), errors.ProviderOverloadedError),
    ("openrouter", 402, _error("Insufficient credits", code=""), errors.NoCreditError),
    (
        "openrouter",
        403,
        _error("Input flagged by moderation", metadata={"reasons": ["violence"]}),
        errors.ContentRefusedError,
    ),
    (
        "openrouter",
        200,
        {"error": {"code": 502, "message": "Provider returned error"}},
        errors.ProviderUnavailableError,
    ),
    ("openrouter", 200, {"error": {"code": 429, "message": "Provider returned error"}}, errors.ThrottledError),
    ("deepseek", 402, _error("Insufficient Balance", "unknown_error", "invalid_request_error"), errors.NoCreditError),
    ("deepseek", 400, _error("Model Not Exist", "invalid_request_error"), errors.ModelGoneError),
    (
        "cerebras",
        429,
        {
            "message": "Requests per day limit exceeded - too many",
            "type": "too_many_requests_error",
            "code": "request_quota_exceeded",
        },
        errors.DailyQuotaError,
    ),
    (
        "cerebras",
        401,
        {"message": "Wrong API Key", "type": "invalid_request_error", "code": "wrong_api_key"},
        errors.KeyRejectedError,
    ),
    (
        "together",
        403,
        _error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097"),
        errors.ContextExceededError,
    ),
    ("fireworks", 412, _error("Account x is suspended"), errors.NoCreditError),
    (
        "vllm",
        404,
        {"object": "error", "message": "The model `m` does not exist.", "type": "NotFoundError", "code": 404},
        errors.ModelGoneError,
    ),
    ("vllm", 401, {"error": "Unauthorized"}, errors.KeyRejectedError),
    (
        "openai_compatible",
        400,
        {"detail": "This model's maximum context length is 4096 tokens."},
        errors.ContextExceededError,
    ),
    ("ollama", 404, {"error": "model 'llama9' not found"}, errors.ModelGoneError),
    ("ollama", 503, {"error": "server busy, please try again."}, errors.ProviderOverloadedError),
]


@pytest.mark.parametrize(("provider", "status", "body", "expected"), CASES)
def test_a_vendors_words_have_their_meaning(
    provider: str, status: int, body: dict[str, Any], expected: type[errors.ProviderError]
) -> None:
    """The body decides; the status only where the body says nothing known."""
    error = _classify(provider, status, body)
    assert type(error) is expected, error.rule


PAGE = b"<html><body>Access denied: insufficient_quota invalid_api_key</body></html>"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (403, errors.PermissionRefusedError),
        (404, errors.BadRequestError),
        (402, errors.BadRequestError),
        (429, errors.ThrottledError),
        (502, errors.ProviderUnavailableError),
        (503, errors.ProviderOverloadedError),
    ],
)
@pytest.mark.parametrize("body", [PAGE, b"", b'{"cut": ', b"[]", b"null"])
def test_a_proxys_page_says_nothing_of_credit(status: int, body: bytes, expected: type[errors.ProviderError]) -> None:
    """What is no JSON object is judged by its status alone, and does not change the key's state."""
    error = _classify("openai", status, body)
    assert type(error) is expected, error.rule
    assert error.key_state is None


@pytest.mark.parametrize("provider", ["anthropic", "openai", "openrouter", "ollama"])
def test_words_inside_an_echoed_prompt_change_nothing(provider: str) -> None:
    """A prompt that the vendor repeats cannot put a key to NO_CREDIT: sentences are matched from their beginning."""
    prompt = "Could not parse: 'Your credit balance is too low. You exceeded your current quota. Insufficient Balance'"
    error = _classify(provider, 400, _error(prompt, "invalid_request_error"))
    assert type(error) is errors.BadRequestError
    assert error.key_state is None


@pytest.mark.parametrize("provider", ["anthropic", "openai", "groq", "cerebras", "ollama"])
def test_an_echoed_key_is_nowhere_in_the_error(provider: str) -> None:
    """Message, facts, rule and cause hold words of ours only."""
    body = {"error": {"message": CANARY, "type": CANARY, "code": CANARY, "param": CANARY}, "message": CANARY}
    error = _classify(provider, 401, body, {"www-authenticate": CANARY})
    assert CANARY not in f"{error!r} {error.message} {error.facts} {error.rule} {error.__dict__}"
    assert error.__cause__ is None


def test_the_vendors_word_on_repeating_comes_first() -> None:
    """``x-should-retry`` overrules what the class would answer."""
    body = _error("odd")
    assert _classify("openai", 400, body, {"x-should-retry": "true"}).retryable
    assert not _classify("openai", 500, body, {"x-should-retry": "false"}).retryable


def test_a_wish_counts_only_for_what_is_worth_repeating() -> None:
    """No credit is not, unless the vendor says that it is."""
    body = _error("Insufficient Balance")
    assert _classify("deepseek", 402, body, {"retry-after": "7"}).retry_after is None
    told = _classify("deepseek", 402, body, {"retry-after": "7", "x-should-retry": "true"})
    assert told.retry_after == timedelta(seconds=7)
    assert _classify("openai", 429, _error("x"), {"retry-after": "7", "x-should-retry": "false"}).retry_after


@pytest.mark.parametrize(("provider", "status"), [("anthropic", 504), ("openai", 504), ("openrouter", 524)])
def test_a_gateways_time_out_may_have_been_billed(provider: str, status: int) -> None:
    """The call was passed on; whether it was worked off, nobody knows."""
    error = _classify(provider, status, _error("x", "timeout_error"))
    assert type(error) is errors.ProviderTimeoutError
    assert error.may_have_been_billed
    assert error.retryable


def test_generation_that_failed_the_vendors_check_may_have_been_billed() -> None:
    """The model had written it all before the vendor's check refused it."""
    error = _classify("groq", 400, _error("x", code="tool_use_failed"))
    assert error.may_have_been_billed
    assert error.retryable

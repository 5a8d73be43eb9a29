"""The vendors' tables of errors, as they document them and as recorded.

Sources: platform.claude.com/docs/en/api/errors · platform.openai.com/docs/guides/error-codes ·
console.groq.com/docs/errors · openrouter.ai/docs/api/reference/errors-and-debugging ·
api-docs.deepseek.com/quick_start/error_codes · docs.together.ai/docs/error-codes ·
docs.fireworks.ai/guides/inference-error-codes ·
inference-docs.cerebras.ai/support/error · docs.ollama.com/api/errors · vllm/entrypoints.
"""

from __future__ import annotations

from typing import Final

from router.domain.errors import (
    BadRequestError,
    ContentRefusedError,
    ContextExceededError,
    DailyQuotaError,
    GenerationRejectedError,
    KeyRejectedError,
    ModelGoneError,
    NoCreditError,
    PermissionRefusedError,
    ProviderOverloadedError,
    ProviderTimeoutError,
    ProviderUnavailableError,
    ThrottledError,
)
from router.providers.failures import FailureTable, rule

ANTHROPIC: Final = FailureTable(
    rule(
        "anthropic.spend_limit",
        NoCreditError,
        code=[
            "enforced_spend_limit_reached",
            "contract_spend_limit_reached",
            "linked_organization_spend_limit_reached",
            "linked_organization_billing_unavailable",
        ],
    ),
    rule("anthropic.on_hold", KeyRejectedError, code=["organization_on_hold"]),
    rule("anthropic.no_credit", NoCreditError, message=r"Your credit balance is too low"),
    rule(
        "anthropic.own_limit", DailyQuotaError, message=r"You have reached your specified (workspace )?API usage limits"
    ),
    rule("anthropic.disabled", KeyRejectedError, message=r"This organization has been disabled"),
    rule("anthropic.billing_error", NoCreditError, kind=["billing_error"]),
    rule("anthropic.authentication_error", KeyRejectedError, kind=["authentication_error"]),
    rule("anthropic.permission_error", PermissionRefusedError, kind=["permission_error"]),
    # What else can be missing is named in the message: a file, a container; their absence says nothing of the model.
    rule(
        "anthropic.thing_not_found",
        BadRequestError,
        kind=["not_found_error"],
        message=r"(File|Container|Skill|Memory store|Message batch|Session)\b",
    ),
    rule("anthropic.not_found_error", ModelGoneError, kind=["not_found_error"]),
    rule("anthropic.request_too_large", ContextExceededError, kind=["request_too_large"]),
    rule(
        "anthropic.prompt_too_long",
        ContextExceededError,
        kind=["invalid_request_error"],
        message=r"prompt is too long|input length and `max_tokens` exceed context limit|.{0,60}exceeds? the maximum",
    ),
    rule("anthropic.content_filter", ContentRefusedError, message=r"Output blocked by content filtering policy"),
    rule(
        "anthropic.daily_quota",
        DailyQuotaError,
        kind=["rate_limit_error"],
        message=r"This request would exceed .{0,120}\b(daily|per day)\b",
    ),
    rule("anthropic.rate_limit_error", ThrottledError, kind=["rate_limit_error"]),
    rule("anthropic.overloaded_error", ProviderOverloadedError, kind=["overloaded_error"]),
    rule("anthropic.gateway_timeout", ProviderTimeoutError, status=[504], kind=["timeout_error"]),
    rule("anthropic.timeout_error", ProviderUnavailableError, kind=["timeout_error"]),
    rule("anthropic.api_error", ProviderUnavailableError, kind=["api_error"]),
    rule("anthropic.conflict", ProviderUnavailableError, status=[409]),
    rule("anthropic.invalid_request_error", BadRequestError, kind=["invalid_request_error"]),
)

_FAILED_STATUSES: Final = (0, 200, 500, 502, 503, 520)
"""Statuses that say no more than that the host failed, or, in a stream, nothing."""

# What every host of OpenAI's dialect says alike; a vendor's own rows come before these.
_OPENAI_COMMON: Final = (
    rule("openai.context_length", ContextExceededError, code=["context_length_exceeded", "string_above_max_length"]),
    rule(
        "openai.context_length_words",
        ContextExceededError,
        message=r"This (model|endpoint)'s maximum context length is|.{0,120}maximum context length of|"
        r"Request too large for|The input token count .{0,40}exceeds|Input validation error: `inputs` tokens|"
        r"The prompt is too long: \d|Your input exceeds the context window",
    ),
    rule(
        "openai.daily_quota",
        DailyQuotaError,
        status=[429, 413],
        message=r"Rate limit (reached|exceeded)?.{0,300}?(per day|\((RPD|TPD|ASD)\)|free-models-per-day)|"
        r"(Requests|Tokens) per day limit exceeded",
    ),
    rule(
        "openai.no_credit",
        NoCreditError,
        code=["insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"],
    ),
    rule("openai.no_credit_kind", NoCreditError, kind=["insufficient_quota", "billing_error", "credit_limit"]),
    rule(
        "openai.no_credit_words",
        NoCreditError,
        message=r"You exceeded your current quota|Insufficient Balance|Billing hard limit has been reached|"
        r"Insufficient credits|This request requires more credits|Your account is not active",
    ),
    rule(
        "openai.permission",
        PermissionRefusedError,
        status=[401, 403],
        message=r"You have insufficient permissions|Missing scopes|You do not have access to this organization",
    ),
    rule(
        "openai.permission_code",
        PermissionRefusedError,
        code=["unsupported_country_region_territory", "ip_not_authorized", "insufficient_permissions", "missing_scope"],
    ),
    rule(
        "openai.key_rejected",
        KeyRejectedError,
        code=[
            "invalid_api_key",
            "account_deactivated",
            "invalid_organization",
            "mismatched_organization",
            "mismatched_project",
            "organization_restricted",
            "wrong_api_key",
            "expired_api_key",
        ],
    ),
    rule("openai.key_rejected_kind", KeyRejectedError, kind=["authentication_error", "invalid_authentication"]),
    rule(
        "openai.model_gone",
        ModelGoneError,
        code=[
            "model_not_found",
            "model_decommissioned",
            "model_not_available",
            "model_deprecated",
            "model_permission_blocked_org",
            "model_permission_blocked_project",
            "NOT_FOUND",
        ],
    ),
    rule("openai.model_gone_kind", ModelGoneError, kind=["NotFoundError", "not_found_error"]),
    rule("openai.model_gone_words", ModelGoneError, status=[400], message=r"invalid model ID"),
    rule(
        "openai.thing_not_found",
        BadRequestError,
        status=[404],
        message=r"(Item|Response|Previous response|File|Vector store|Container|Conversation|Prompt) with id\b|"
        r"No such (File|Vector store|Container)|Invalid URL \(",
    ),
    rule(
        "openai.content_refused",
        ContentRefusedError,
        code=[
            "content_policy_violation",
            "content_filter",
            "moderation_blocked",
            "invalid_prompt",
            "cyber_policy_violation",
            "bio_policy",
            "cyber_policy",
            "misalignment_policy_violation",
            "image_content_policy_violation",
        ],
    ),
    rule("openai.overloaded", ProviderOverloadedError, code=["queue_exceeded", "engine_overloaded", "slow_down"]),
    rule(
        "openai.overloaded_words",
        ProviderOverloadedError,
        message=r"The engine is currently overloaded|That model is currently overloaded|Slow down|"
        r"The server is overloaded|We're experiencing high traffic|.{0,120}is currently over capacity",
    ),
    # Some hosts call every failure an API error; with a status of its own, the status says more. A gateway's time-out
    # stays one, because the call may have been billed.
    rule(
        "openai.server_error",
        ProviderUnavailableError,
        status=_FAILED_STATUSES,
        kind=["server_error", "internal_server_error", "api_error"],
    ),
    rule(
        "openai.server_error_code",
        ProviderUnavailableError,
        status=_FAILED_STATUSES,
        code=["server_error", "internal_error", "vector_store_timeout"],
    ),
    rule("openai.throttled", ThrottledError, code=["rate_limit_exceeded", "rate_limit_error"]),
    rule(
        "openai.throttled_kind", ThrottledError, kind=["rate_limit_error", "rate_limit_exceeded", "too_many_requests"]
    ),
)
_OPENAI_LAST: Final = (
    # A response that failed over its picture names no type, only one of these codes.
    rule(
        "openai.image",
        BadRequestError,
        status=[0, 200, 400],
        code=[
            "invalid_image",
            "invalid_image_format",
            "invalid_base64_image",
            "invalid_image_url",
            "invalid_image_mode",
            "image_too_large",
            "image_too_small",
            "image_parse_error",
            "image_file_too_large",
            "image_file_not_found",
            "unsupported_image_media_type",
            "empty_image_file",
            "failed_to_download_image",
        ],
    ),
    rule("openai.residency", PermissionRefusedError, code=["data_residency_mismatch"]),
    rule("openai.invalid_request", BadRequestError, status=[0, 200, 400, 422], kind=["invalid_request_error"]),
)

OPENAI: Final = FailureTable(*_OPENAI_COMMON, *_OPENAI_LAST)

GROQ: Final = FailureTable(
    rule("groq.generation", GenerationRejectedError, code=["tool_use_failed", "json_validate_failed"]),
    rule("groq.generation_words", GenerationRejectedError, message=r"Tool choice is required, but model did not call"),
    rule("groq.request_too_large", ContextExceededError, status=[413]),
    rule("groq.model_terms", ModelGoneError, code=["model_terms_required"]),
    rule("groq.spend_limit", NoCreditError, code=["blocked_api_access", "spend_limit_reached"]),
    rule("groq.capacity", ProviderOverloadedError, status=[498], code=["capacity_exceeded"]),
    *_OPENAI_COMMON,
    *_OPENAI_LAST,
)

# What an upstream says of the content holds for ours; what it says of keys and limits is of OpenRouter's own.
_OPENROUTER_UPSTREAM: Final = (
    rule(
        "openrouter.upstream_content",
        ContentRefusedError,
        code=["content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation"],
    ),
    rule("openrouter.upstream_context", ContextExceededError, code=["context_length_exceeded"]),
    rule(
        "openrouter.upstream_context_words",
        ContextExceededError,
        status=[400, 413, 422],
        message=r"This model's maximum context length is|prompt is too long|.{0,120}maximum context length of|"
        r"The input token count .{0,40}exceeds",
    ),
)

OPENROUTER: Final = FailureTable(
    rule("openrouter.moderation", ContentRefusedError, status=[403], message=r".{0,120}(flagged|moderation)"),
    rule(
        "openrouter.key_limit", NoCreditError, status=[402, 403], message=r"Key limit exceeded|.{0,60}spend(ing)? limit"
    ),
    rule("openrouter.no_endpoint", ModelGoneError, status=[404]),
    rule(
        "openrouter.unknown_model",
        ModelGoneError,
        status=[400],
        message=r".{0,120}is not a valid model ID|No models provided",
    ),
    rule("openrouter.timeout", ProviderUnavailableError, status=[408]),
    rule("openrouter.upstream", ProviderUnavailableError, status=[502]),
    *_OPENAI_COMMON,
    *_OPENAI_LAST,
    upstream=_OPENROUTER_UPSTREAM,
)

DEEPSEEK: Final = FailureTable(
    rule("deepseek.model", ModelGoneError, status=[400], message=r"Model Not Exist"),
    rule("deepseek.content", ContentRefusedError, status=[400], message=r"Content Exists Risk"),
    *_OPENAI_COMMON,
    rule("deepseek.invalid", BadRequestError, status=[400, 422]),
)

TOGETHER: Final = FailureTable(
    # Together answers 403 when prompt and answer together exceed the context.
    rule("together.context", ContextExceededError, status=[400, 403, 422], message=r".{0,160}max_new_tokens"),
    rule("together.model", ModelGoneError, message=r"Unable to access (non-serverless )?model"),
    rule("together.key", KeyRejectedError, message=r"Invalid API key provided"),
    *_OPENAI_COMMON,
    *_OPENAI_LAST,
)

FIREWORKS: Final = FailureTable(
    # A suspended account answers 412, whatever the reason: unpaid invoices or its own spending limit.
    rule("fireworks.suspended", NoCreditError, status=[412]),
    rule("fireworks.unauthorized", KeyRejectedError, code=["UNAUTHORIZED"]),
    *_OPENAI_COMMON,
    *_OPENAI_LAST,
)

CEREBRAS: Final = FailureTable(
    rule("cerebras.daily", DailyQuotaError, message=r".{0,40}per day limit exceeded"),
    rule("cerebras.quota", ThrottledError, code=["token_quota_exceeded", "request_quota_exceeded"]),
    rule("cerebras.payment", NoCreditError, code=["payment_required"]),
    *_OPENAI_COMMON,
    *_OPENAI_LAST,
)

_OLLAMA: Final = (
    rule("ollama.model", ModelGoneError, message=r"model ['\"]?[^ ]{1,200}['\"]? not found"),
    rule(
        "ollama.context",
        ContextExceededError,
        message=r".{0,80}exceeds? (the )?(maximum )?context|input length exceeds",
    ),
    rule("ollama.busy", ProviderOverloadedError, message=r"server busy"),
    rule("ollama.memory", ProviderUnavailableError, message=r"model requires more system memory"),
    rule(
        "ollama.quota", DailyQuotaError, status=[429, 402], message=r".{0,80}(weekly|daily|hourly|session) usage limit"
    ),
)

OLLAMA: Final = FailureTable(*_OLLAMA)
OLLAMA_AS_OPENAI: Final = FailureTable(*_OLLAMA, *_OPENAI_COMMON, *_OPENAI_LAST)

VLLM: Final = FailureTable(
    rule("vllm.unauthorized", KeyRejectedError, status=[401]),
    *_OPENAI_COMMON,
    rule("vllm.invalid", BadRequestError, status=[400, 422]),
)

COMPATIBLE: Final = FailureTable(*_OPENAI_COMMON, *_OPENAI_LAST)

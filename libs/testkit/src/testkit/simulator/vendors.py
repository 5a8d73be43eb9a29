"""The vendors that the simulator stands in for, as rows.

Each vendor lives under its slug, followed by the path that its own base URL ends with: `/groq/openai/v1/…`. The bare
paths that no two vendors share (`/v1/messages`, `/api/chat`, and OpenAI's) work too.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum


class Dialect(StrEnum):
    """A wire format."""

    ANTHROPIC = "anthropic"
    OPENAI = "openai"
    OLLAMA = "ollama"


class Route(StrEnum):
    """An endpoint, under one name for all vendors, as faults and the ledger call it."""

    MESSAGES = "messages"
    COUNT_TOKENS = "count_tokens"
    CHAT_COMPLETIONS = "chat_completions"
    RESPONSES = "responses"
    EMBEDDINGS = "embeddings"
    MODELS = "models"
    OLLAMA_CHAT = "ollama_chat"
    OLLAMA_EMBED = "ollama_embed"
    OLLAMA_SHOW = "ollama_show"
    OLLAMA_TAGS = "ollama_tags"
    OLLAMA_VERSION = "ollama_version"


@dataclass(frozen=True, kw_only=True)
class Vendor:
    """What distinguishes one vendor from the others of its dialect."""

    slug: str
    dialect: Dialect
    base_path: str
    key_prefix: str
    key_pattern: re.Pattern[str]
    models: tuple[str, ...]
    nano_usd_per_input_token: int = 150
    nano_usd_per_output_token: int = 600


_OPENAI_KEY = re.compile(r"sk-(?!ant-|or-)[A-Za-z0-9_-]{16,}")

VENDORS = {
    vendor.slug: vendor
    for vendor in (
        Vendor(
            slug="anthropic",
            dialect=Dialect.ANTHROPIC,
            base_path="",
            key_prefix="sk-ant-api03-",
            key_pattern=re.compile(r"sk-ant-[A-Za-z0-9_-]{8,}"),
            models=("claude-haiku-4-5", "claude-sonnet-4-5", "claude-opus-4-5"),
        ),
        Vendor(
            slug="openai",
            dialect=Dialect.OPENAI,
            base_path="/v1",
            key_prefix="sk-proj-",
            key_pattern=_OPENAI_KEY,
            models=("gpt-4o-mini", "gpt-4o", "gpt-5-mini", "text-embedding-3-small", "text-embedding-3-large"),
        ),
        Vendor(
            slug="groq",
            dialect=Dialect.OPENAI,
            base_path="/openai/v1",
            key_prefix="gsk_",
            key_pattern=re.compile(r"gsk_[A-Za-z0-9]{8,}"),
            models=("openai/gpt-oss-20b", "openai/gpt-oss-120b", "llama-3.3-70b-versatile"),
        ),
        Vendor(
            slug="together",
            dialect=Dialect.OPENAI,
            base_path="/v1",
            key_prefix="tgp_v1_",
            key_pattern=re.compile(r"tgp_v1_[A-Za-z0-9_-]{8,}|[0-9a-f]{64}"),
            models=("openai/gpt-oss-120b", "intfloat/multilingual-e5-large-instruct"),
        ),
        Vendor(
            slug="fireworks",
            dialect=Dialect.OPENAI,
            base_path="/inference/v1",
            key_prefix="fw_",
            key_pattern=re.compile(r"fw_[A-Za-z0-9]{8,}"),
            models=("accounts/fireworks/models/gpt-oss-20b", "accounts/fireworks/models/qwen3-embedding-8b"),
        ),
        Vendor(
            slug="cerebras",
            dialect=Dialect.OPENAI,
            base_path="/v1",
            key_prefix="csk-",
            key_pattern=re.compile(r"csk-[A-Za-z0-9]{8,}"),
            models=("gpt-oss-120b", "llama3.1-8b"),
        ),
        Vendor(
            slug="deepseek",
            dialect=Dialect.OPENAI,
            base_path="",
            key_prefix="sk-",
            key_pattern=re.compile(r"sk-[0-9a-f]{32}"),
            models=("deepseek-v4-flash", "deepseek-v4-pro"),
        ),
        Vendor(
            slug="openrouter",
            dialect=Dialect.OPENAI,
            base_path="/api/v1",
            key_prefix="sk-or-v1-",
            key_pattern=re.compile(r"sk-or-[A-Za-z0-9_-]{8,}"),
            models=("openai/gpt-4o-mini", "openai/text-embedding-3-small", "anthropic/claude-sonnet-4.6"),
        ),
        Vendor(
            slug="ollama",
            dialect=Dialect.OLLAMA,
            base_path="",
            key_prefix="",
            key_pattern=re.compile(r".*"),
            models=("llama3.2:latest", "qwen3:0.6b", "mxbai-embed-large:latest", "nomic-embed-text:latest"),
        ),
    )
}

_PATHS: dict[Dialect, dict[str, Route]] = {
    Dialect.ANTHROPIC: {
        "/v1/messages": Route.MESSAGES,
        "/v1/messages/count_tokens": Route.COUNT_TOKENS,
        "/v1/models": Route.MODELS,
    },
    Dialect.OPENAI: {
        "/chat/completions": Route.CHAT_COMPLETIONS,
        "/responses": Route.RESPONSES,
        "/embeddings": Route.EMBEDDINGS,
        "/models": Route.MODELS,
    },
    Dialect.OLLAMA: {
        "/api/chat": Route.OLLAMA_CHAT,
        "/api/embed": Route.OLLAMA_EMBED,
        "/api/show": Route.OLLAMA_SHOW,
        "/api/tags": Route.OLLAMA_TAGS,
        "/api/version": Route.OLLAMA_VERSION,
        # Ollama's own rendering of OpenAI's dialect.
        "/v1/chat/completions": Route.CHAT_COMPLETIONS,
        "/v1/models": Route.MODELS,
    },
}


@dataclass(frozen=True)
class Endpoint:
    """Whose endpoint a path is, and which."""

    vendor: Vendor
    route: Route


def _endpoints() -> dict[str, Endpoint]:
    table: dict[str, Endpoint] = {}
    for vendor in VENDORS.values():
        for path, route in _PATHS[vendor.dialect].items():
            table[f"/{vendor.slug}{vendor.base_path}{path}"] = Endpoint(vendor, route)
    for slug in ("ollama", "openai", "anthropic"):
        vendor = VENDORS[slug]
        for path, route in _PATHS[vendor.dialect].items():
            table[f"{vendor.base_path}{path}"] = Endpoint(vendor, route)
    # On the bare path both vendors list models; OpenAI's clients are the ones that send a bearer token there.
    table["/v1/models"] = Endpoint(VENDORS["openai"], Route.MODELS)
    table["/v1/chat/completions"] = Endpoint(VENDORS["openai"], Route.CHAT_COMPLETIONS)
    # DeepSeek answers with and without the version, and under /beta.
    for prefix in ("/deepseek/v1", "/deepseek/beta"):
        table[f"{prefix}/chat/completions"] = Endpoint(VENDORS["deepseek"], Route.CHAT_COMPLETIONS)
    return table


ENDPOINTS = _endpoints()


def make_key(vendor: str, seed: str, *, fault: str = "") -> str:
    """Return a key of the vendor's shape, the same for the same seed, so that a test can make as many as it needs.

    Args:
        vendor: the slug.
        seed: what distinguishes the key.
        fault: name of a fault that every call with this key meets (see `faults.FaultKind`).
    """
    row = VENDORS[vendor]
    digest = hashlib.sha512(f"{vendor}:{seed}".encode()).digest()
    if vendor == "deepseek":
        if fault:
            message = "a DeepSeek key is hex digits only and cannot name a fault; add a rule for its fingerprint"
            raise ValueError(message)
        return row.key_prefix + digest.hex()[:32]
    body = base64.b32encode(digest).decode().rstrip("=")
    return row.key_prefix + body[:48] + (f"xFAULT{fault.replace('_', '').upper()}x" if fault else "") + body[48:60]

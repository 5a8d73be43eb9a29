"""The catalogue's data holds together, and its answers name a remedy."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from catalogue.book import Catalogue, load_catalogue, shortfall
from catalogue.models import (
    Declared,
    Dialect,
    Effort,
    Model,
    ModelKind,
    Operation,
    StructuredOutput,
    UnsupportedReason,
)

CATALOGUE = load_catalogue()
MODELS = [model for provider in CATALOGUE.providers for model in CATALOGUE.models(provider.slug)]
CHAT_MODELS = [model for model in MODELS if model.kind is ModelKind.CHAT]
DEFAULTS = [
    (provider.slug, operation, model_id)
    for provider in CATALOGUE.providers
    for operation, model_id in provider.default_models.items()
]


@pytest.mark.parametrize(("provider", "operation", "model_id"), DEFAULTS)
def test_every_default_can_do_its_operation(provider: str, operation: Operation, model_id: str) -> None:
    """A default that could not would fail every owner who maps nothing."""
    assert CATALOGUE.operation_supported(provider, model_id, operation) is None
    assert CATALOGUE.default_model(provider, operation) == model_id
    assert model_id in {model.model_id for model in CATALOGUE.models(provider)}


def test_providers_of_the_first_phase_serve_guardrails() -> None:
    """Each hosted provider has a guardrail model, a key validation and a base URL of its own."""
    for provider in CATALOGUE.providers:
        if provider.takes_any_model:
            assert provider.default_models == {}
            continue
        assert {Operation.GUARDRAIL_EVALUATION, Operation.KEY_VALIDATION} <= provider.default_models.keys()
        assert provider.base_url is not None
        assert any(host in provider.base_url for host in provider.fixed_hosts)


@pytest.mark.parametrize("row", MODELS, ids=lambda row: f"{row.provider}/{row.model_id}")
def test_rows_hold_together(row: Model) -> None:
    """Every row names its source and does not contradict itself."""
    assert row.sources
    assert row.is_reviewed
    assert (row.kind is ModelKind.EMBEDDING) is (row.embedding is not None)
    assert row.context_tokens is not None
    if row.kind is ModelKind.EMBEDDING:
        return
    assert row.output_tokens_max is not None
    assert row.output_tokens_max <= row.context_tokens
    assert not row.efforts or row.thinks or row.provider == "anthropic"
    assert row.retire_date == "" or re.fullmatch(r"\d{4}-\d{2}-\d{2}", row.retire_date)
    assert CATALOGUE.image_rule(row.image) is not None


def test_no_id_means_two_models() -> None:
    """Ids and aliases of one provider are each one model's."""
    names = [(model.provider, name) for model in MODELS for name in (model.model_id, *model.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("model_id", "operation", "reason"),
    [
        ("text-embedding-3-small", Operation.GUARDRAIL_EVALUATION, UnsupportedReason.WRONG_KIND),
        ("gpt-4o", Operation.EMBEDDING_GENERATION, UnsupportedReason.WRONG_KIND),
        ("gpt-4", Operation.GUARDRAIL_EVALUATION, UnsupportedReason.NO_STRUCTURED_OUTPUT),
        ("o3-mini", Operation.EVIDENCE_VERIFICATION, UnsupportedReason.NO_VISION),
        ("gpt-4o-mini", Operation.TASK_DECOMPOSITION, UnsupportedReason.WEAK_REASONING),
        ("text-embedding-ada-002", Operation.EMBEDDING_GENERATION, UnsupportedReason.DIMENSIONS_UNAVAILABLE),
        ("gpt-of-tomorrow", Operation.CHAT, UnsupportedReason.MODEL_UNKNOWN),
    ],
)
def test_what_a_model_cannot_do_is_said_with_a_remedy(
    model_id: str, operation: Operation, reason: UnsupportedReason
) -> None:
    """Reason and a sentence for the owner that names the model."""
    found = CATALOGUE.operation_supported("openai", model_id, operation)
    assert found is not None
    assert found.reason is reason
    assert model_id in found.message
    assert found.message.endswith(".")


def test_an_unknown_provider_is_named_with_the_known_ones() -> None:
    """The remedy is the list."""
    found = CATALOGUE.operation_supported("closedai", "m", Operation.CHAT)
    assert found is not None
    assert found.reason is UnsupportedReason.PROVIDER_UNKNOWN
    assert "anthropic" in found.message


def test_an_unknown_model_can_do_what_its_owner_declares_and_no_more() -> None:
    """What a declaration leaves out is missing."""
    declared = Declared(structured_output=True, context_tokens=8_000)
    ask = CATALOGUE.operation_supported
    assert ask("vllm", "own", Operation.GUARDRAIL_EVALUATION) is not None
    assert ask("vllm", "own", Operation.GUARDRAIL_EVALUATION, declared) is None
    for operation, reason in (
        (Operation.TASK_DECOMPOSITION, UnsupportedReason.WEAK_REASONING),
        (Operation.EVIDENCE_VERIFICATION, UnsupportedReason.NO_VISION),
        (Operation.EMBEDDING_GENERATION, UnsupportedReason.WRONG_KIND),
    ):
        found = ask("vllm", "own", operation, declared)
        assert found is not None
        assert found.reason is reason
    small = ask("vllm", "own", Operation.GUARDRAIL_EVALUATION, Declared(structured_output=True))
    assert small is not None
    assert small.reason is UnsupportedReason.CONTEXT_TOO_SMALL


def test_a_declaration_cannot_raise_a_reviewed_model() -> None:
    """The catalogue's own row comes first."""
    boast = Declared(vision=True, structured_output=True, strong_reasoning=True, context_tokens=10**6)
    assert CATALOGUE.operation_supported("openai", "gpt-4", Operation.EVIDENCE_VERIFICATION, boast) is not None


def test_a_declared_embedding_model_has_a_space_of_its_own() -> None:
    """Without a declared maker its space matches no other."""
    own = CATALOGUE.model("vllm", "own", Declared(embedding_dimensions=(1_024,)))
    named = CATALOGUE.model(
        "vllm",
        "own",
        Declared(embedding_dimensions=(1_024,), embedding_space_maker="baai", embedding_space_model="bge-m3"),
    )
    reviewed = CATALOGUE.model("ollama", "bge-m3")
    assert own is not None
    assert named is not None
    assert reviewed is not None
    spaces = [CATALOGUE.embedding_space(model, 1_024) for model in (own, named, reviewed)]
    assert spaces[0] is not None
    assert spaces[0].name == "vllm/own@1024"
    assert spaces[1] == spaces[2]
    assert CATALOGUE.embedding_space(own, 512) is None


def test_one_space_is_reached_by_several_routes() -> None:
    """A space is maker, model and size, whatever the provider."""
    spaces = {
        provider: {space.name for _, space in CATALOGUE.embedding_spaces(provider)}
        for provider in ("openai", "openrouter")
    }
    assert "openai/text-embedding-3-small@1024" in spaces["openai"] & spaces["openrouter"]


def test_snapshots_are_their_model_under_their_own_id() -> None:
    """A dated id is sent as it is and known as its model."""
    found = CATALOGUE.model("openai", "gpt-5.4-2031-01-31")
    assert found is not None
    assert found.model_id == "gpt-5.4-2031-01-31"
    assert found.dialect is Dialect.OPENAI_RESPONSES


@pytest.mark.parametrize("row", CHAT_MODELS, ids=lambda row: row.model_id)
def test_least_output_leaves_room_for_thinking(row: Model) -> None:
    """A thinking model is given more, asked for an effort that it takes, and never more than it can produce."""
    for operation in (Operation.GUARDRAIL_EVALUATION, Operation.TASK_DECOMPOSITION, Operation.CHAT):
        found = CATALOGUE.viability(row, operation)
        assert found is not None
        assert 0 < found.output_tokens_min <= found.output_tokens_max <= (row.output_tokens_max or 0)
        assert found.effort is None or found.effort in row.efforts
        if row.thinks:
            assert found.output_tokens_min >= 1_000
    assert row.structured_output in StructuredOutput
    assert Effort.NONE not in row.efforts or row.thinks


@pytest.mark.parametrize(
    ("secret", "vendor"),
    [
        (b"sk-ant-api03-AAAABBBBCCCC", "anthropic"),
        (b"sk-proj-AAAABBBBCCCC", "openai"),
        (b"sk-or-v1-" + b"a" * 64, "openrouter"),
        (b"gsk_AAAABBBBCCCC", "groq"),
        (b"csk-aaaabbbbcccc", "cerebras"),
        (b"fw_AAAABBBBCCCC", "fireworks"),
        (b"tgp_v1_AAAABBBBCCCC", "together"),
        (b"sk-" + b"0123456789abcdef" * 2, "deepseek"),
        (b"AIza" + b"a" * 35, "google"),
        (b"pa-" + b"a" * 43, "voyage"),
        (b"xai-" + b"a" * 60, "xai"),
        (b"something else", None),
        (b"", None),
        (b"sk-ant-api03-AAAABBBBCCCC\n", None),
        (b"sk-ant-" + b"a" * 10_000, None),
        (b"\xff\xfe", None),
        (b"0" * 64, None),
    ],
)
def test_a_key_is_told_by_its_shape(secret: bytes, vendor: str | None) -> None:
    """Only where the shape is one vendor's alone."""
    found = CATALOGUE.looks_like(secret)
    assert (found.vendor if found else None) == vendor


def test_shapes_are_of_one_vendor_each() -> None:
    """No two distinctive shapes take the same of our examples."""
    examples = {b"sk-ant-api03-AAAABBBBCCCC", b"sk-proj-AAAABBBBCCCC", b"sk-or-v1-aaaabbbbcccc", b"sk-" + b"0" * 32}
    for example in examples:
        fitting = [shape.vendor for shape, pattern in CATALOGUE._shapes if pattern.fullmatch(example)]
        assert len(fitting) == 1, (example, fitting)


def test_a_key_of_another_vendor_is_foreign_and_an_odd_one_is_not() -> None:
    """Vendors change their shapes without notice, and a compatible host's keys may look like anybody's."""
    anthropic = b"sk-ant-api03-AAAABBBBCCCC"
    foreign = CATALOGUE.foreign_shape("openai", anthropic)
    assert foreign is not None
    assert foreign.name == "Anthropic"
    assert CATALOGUE.foreign_shape("anthropic", anthropic) is None
    assert CATALOGUE.foreign_shape("anthropic", b"shape-of-tomorrow") is None
    assert CATALOGUE.foreign_shape("openai_compatible", anthropic) is None
    assert CATALOGUE.foreign_shape("no_such_provider", anthropic) is None


@pytest.mark.parametrize(
    ("provider", "base_url", "vendor"),
    [
        ("openai_compatible", "https://api.groq.com/openai/v1", "groq"),
        ("openai_compatible", "https://API.GROQ.COM/openai/v1", "groq"),
        ("openai_compatible", "https://api.groq.com.evil.test/v1", "openai_compatible"),
        ("openai_compatible", "https://api.anthropic.com/v1", "openai_compatible"),
        ("openai_compatible", "", "openai_compatible"),
        ("groq", "https://proxy.test/v1", "groq"),
        ("ollama", "https://api.groq.com", "ollama"),
        ("no_such_provider", "https://api.groq.com", "no_such_provider"),
    ],
)
def test_a_compatible_hosts_vendor_is_told_by_its_host(provider: str, base_url: str, vendor: str) -> None:
    """Only by the exact host, and only for a provider that takes any."""
    assert CATALOGUE.vendor_of(provider, base_url) == vendor


def test_the_most_specific_overhead_counts() -> None:
    """A vendor's row comes before everybody's."""
    assert CATALOGUE.overheads("anthropic", "claude-x").provider == "anthropic"
    assert CATALOGUE.overheads("vendor_of_tomorrow", "m").provider == "*"


def test_shortfall_speaks_of_a_bare_model_too() -> None:
    """The rule is usable on a row that is in no catalogue."""
    model = CATALOGUE.model("vllm", "own", Declared())
    assert model is not None
    needs = CATALOGUE.requirement(Operation.GUARDRAIL_EVALUATION)
    assert shortfall(model, needs, Operation.GUARDRAIL_EVALUATION) is not None


def test_it_is_light() -> None:
    """Custody imports it too, so it may load no HTTP client, no SDK and no gRPC."""
    heavy = "[m for m in ('ssl', 'httpx2', 'aiohttp', 'grpc', 'pydantic', 'openai', 'anthropic') if m in sys.modules]"
    program = f"import sys; from catalogue.book import load_catalogue; load_catalogue(); print({heavy})"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)  # noqa: S603 - our own interpreter
    assert done.stdout.strip() == "[]"


def test_it_is_read_once() -> None:
    """Every service shares one."""
    assert load_catalogue() is CATALOGUE
    assert isinstance(CATALOGUE, Catalogue)

"""What is known of providers and models, as plain frozen records.

The records say what has been reviewed, or what an owner has declared; nothing here asks a provider anything.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Operation(StrEnum):
    """What a key may be used for."""

    GUARDRAIL_EVALUATION = "guardrail_evaluation"
    EMBEDDING_GENERATION = "embedding_generation"
    TASK_DECOMPOSITION = "task_decomposition"
    EVIDENCE_VERIFICATION = "evidence_verification"
    SAFETY_ESCALATION = "safety_escalation"
    CHAT = "chat"
    KEY_VALIDATION = "key_validation"


class Dialect(StrEnum):
    """The form of a provider's requests and answers."""

    ANTHROPIC_MESSAGES = "anthropic_messages"
    OPENAI_CHAT = "openai_chat"
    OPENAI_RESPONSES = "openai_responses"
    OLLAMA = "ollama"


class ModelKind(StrEnum):
    """What a model makes."""

    CHAT = "chat"
    EMBEDDING = "embedding"


class StructuredOutput(StrEnum):
    """How a model can be held to a JSON schema."""

    NONE = "none"
    """Not at all: a prompt asks for JSON and a parser looks for it."""

    JSON_OBJECT = "json_object"
    """Any JSON object; the schema is in the prompt."""

    JSON_SCHEMA = "json_schema"
    """The vendor's decoder keeps to the schema."""


class Strength(StrEnum):
    """How well a model reasons, as reviewed; decomposition asks for ``strong``."""

    WEAK = "weak"
    FAIR = "fair"
    STRONG = "strong"


class Effort(StrEnum):
    """How much a reasoning model may think before it answers."""

    NONE = "none"
    MINIMAL = "minimal"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class SystemRole(StrEnum):
    """Under which role a model takes its instructions."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    """It knows no such role: the instructions go before the first user text."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen record whose data file may hold no unknown field."""


class Viability(Record, frozen=True, kw_only=True):
    """What an operation needs from one model to give a usable answer.

    Attributes:
        output_tokens_min: The least output, thinking included, below which nothing usable comes back.
        output_tokens_max: The most output that makes sense.
        effort: The reasoning effort to ask for; ``None`` for models without one.
    """

    output_tokens_min: int
    output_tokens_max: int
    effort: Effort | None = None


class EmbeddingFacts(Record, frozen=True, kw_only=True):
    """What is known of an embedding model.

    Attributes:
        maker: Who trained it; the first half of the space's name.
        model: The maker's name for it, without a host's prefix.
        dimensions: The sizes that it can give.
        takes_dimensions: Whether a request may name the size; otherwise the only size is its own.
        inputs_max: Texts in one request.
        input_tokens_max: Tokens of one text.
        batch_tokens_max: Tokens of one request, ``None`` when the vendor names no such limit.
        price_usd: Reviewed price in USD per million input tokens, as decimal text, where the price package has none.
    """

    maker: str
    model: str
    dimensions: tuple[int, ...]
    takes_dimensions: bool = False
    inputs_max: int = 96
    input_tokens_max: int = 8_191
    batch_tokens_max: int | None = None
    price_usd: str = ""


class Model(Record, frozen=True, kw_only=True):
    """A model at one provider.

    Attributes:
        provider: The provider's slug.
        model_id: The id that the provider takes.
        kind: What it makes.
        aliases: Other ids for the same model.
        dialect: Set where it differs from its provider's.
        context_tokens: Its context window; ``None`` when unknown.
        output_tokens_max: The most that it can produce; ``None`` when unknown.
        structured_output: How it can be held to a schema.
        vision: Whether it takes images.
        strength: How well it reasons.
        thinks: Whether it may think before it answers, at the price of output.
        efforts: The reasoning efforts that it accepts; empty when it takes none.
        takes_temperature: Whether it accepts a temperature.
        token_limit_parameter: The name of the field that limits output.
        system_role: Under which role it takes instructions.
        embedding: Set for embedding models.
        viability: What an operation needs where it differs from the operation's usual needs.
        image: The name of the rule that bounds an image's tokens.
        retire_date: The day on which the vendor has said that it ends, as ``YYYY-MM-DD``.
        is_reviewed: Whether the row is the catalogue's own; otherwise an owner declared it.
        sources: Where the facts were read.
    """

    provider: str
    model_id: str
    kind: ModelKind = ModelKind.CHAT
    aliases: tuple[str, ...] = ()
    dialect: Dialect | None = None
    context_tokens: int | None = None
    output_tokens_max: int | None = None
    structured_output: StructuredOutput = StructuredOutput.NONE
    vision: bool = False
    strength: Strength = Strength.WEAK
    thinks: bool = False
    efforts: tuple[Effort, ...] = ()
    takes_temperature: bool = True
    token_limit_parameter: str = "max_tokens"  # noqa: S105 - the name of a field, not a secret
    system_role: SystemRole = SystemRole.SYSTEM
    embedding: EmbeddingFacts | None = None
    viability: dict[Operation, Viability] = {}
    image: str = "unknown"
    retire_date: str = ""
    is_reviewed: bool = True
    sources: tuple[str, ...] = ()


class Declared(Record, frozen=True, kw_only=True):
    """What an owner says of a model that the catalogue does not know.

    Attributes:
        structured_output: Whether it can be held to a JSON schema by its host.
        vision: Whether it takes images.
        strong_reasoning: Whether it is fit for decomposition.
        context_tokens: Its context window.
        embedding_dimensions: The sizes that it can give; non-empty makes it an embedding model.
        embedding_space_maker: Who trained it, needed to name its space.
        embedding_space_model: The maker's name for it.
    """

    structured_output: bool = False
    vision: bool = False
    strong_reasoning: bool = False
    context_tokens: int | None = None
    embedding_dimensions: tuple[int, ...] = ()
    embedding_space_maker: str = ""
    embedding_space_model: str = ""


class KeyPattern(Record, frozen=True, kw_only=True):
    """The shape of a vendor's keys.

    Attributes:
        pattern: A regular expression for the whole key.
        is_distinctive: Whether no other known vendor's keys look the same, so that a match names the vendor.
    """

    pattern: str
    is_distinctive: bool = True


class AuthHeader(Record, frozen=True, kw_only=True):
    """The header that carries a key: ``header: <prefix><key>``."""

    header: str
    prefix: str = ""


class Provider(Record, frozen=True, kw_only=True):
    """A provider.

    Attributes:
        slug: Its name in every contract.
        name: Its name for people.
        dialect: How to speak to it.
        base_url: The default; ``None`` when the owner must give one.
        auth: How its key is sent.
        key_patterns: What its keys look like; empty when any text may be a key.
        needs_key: Whether it always takes a key (a local Ollama takes none).
        takes_any_model: Whether its models are the owner's to declare.
        fixed_hosts: The only hosts of its base URL; empty when any host may be named.
        default_models: The model of each operation when the mapping names none.
        sources: Where the facts were read.
    """

    slug: str
    name: str
    dialect: Dialect
    auth: AuthHeader
    base_url: str | None = None
    key_patterns: tuple[KeyPattern, ...] = ()
    needs_key: bool = True
    takes_any_model: bool = False
    fixed_hosts: tuple[str, ...] = ()
    default_models: dict[Operation, str] = {}
    sources: tuple[str, ...] = ()


class Requirement(Record, frozen=True, kw_only=True):
    """What an operation asks of a model (spec 8.3).

    Attributes:
        kind: What the model must make.
        structured_output: Whether the answer must be JSON by schema.
        vision: Whether the model must take images.
        strong_reasoning: Whether the model must reason well.
        context_tokens_min: The least context window.
        embedding_dimensions: The size of vectors that it must be able to give.
        viability: What a model usually needs to give a usable answer; ``None`` where there is no output.
        thinking_viability: The same for models that think before they answer.
    """

    kind: ModelKind
    structured_output: bool = False
    vision: bool = False
    strong_reasoning: bool = False
    context_tokens_min: int = 0
    embedding_dimensions: int | None = None
    viability: Viability | None = None
    thinking_viability: Viability | None = None


class KeyShape(Record, frozen=True, kw_only=True):
    """A vendor whose keys can be told by their shape."""

    vendor: str
    name: str
    pattern: str


class ImageKind(StrEnum):
    """How a vendor counts an image."""

    AREA = "area"
    """One token for so many pixels."""

    TILES = "tiles"
    """Tiles of 512 pixels, after the shorter side was scaled to 768."""

    PATCHES = "patches"
    """Patches of a fixed size."""


class ImageRule(Record, frozen=True, kw_only=True):
    """A bound of an image's tokens from its pixels.

    Attributes:
        kind: How the vendor counts.
        base: Tokens of any image.
        each: Tokens of one unit (a token's worth of area, a tile, a patch); a fraction is rounded up at the end.
        unit_px: Pixels of a unit: its area for AREA, its side for PATCHES.
        units_max: The most units that the vendor makes of one image; ``None`` when it names no limit.
    """

    kind: ImageKind
    base: int = 0
    each: float = 1.0
    unit_px: int = 512
    units_max: int | None = None


class Overhead(Record, frozen=True, kw_only=True):
    """Input tokens that a vendor adds to what the request's bytes can hold.

    Attributes:
        provider: The provider's slug, or ``*``.
        model_prefix: The beginning of the model's id, or empty for all models.
        base: Added to every call.
        tools: Added when client tools are declared.
        schema: Added when an answer is held to a schema.
        each_message: Added for every message.
    """

    provider: str
    model_prefix: str = ""
    base: int = 0
    tools: int = 0
    schema: int = 0
    each_message: int = 0


class EmbeddingSpace(Record, frozen=True, kw_only=True):
    """Vectors that may be compared with one another."""

    maker: str
    model: str
    dimensions: int

    @property
    def name(self) -> str:
        """Return ``maker/model@dimensions``."""
        return f"{self.maker}/{self.model}@{self.dimensions}"


class UnsupportedReason(StrEnum):
    """Why a model cannot do an operation."""

    PROVIDER_UNKNOWN = "provider_unknown"
    MODEL_UNKNOWN = "model_unknown"
    WRONG_KIND = "wrong_kind"
    NO_STRUCTURED_OUTPUT = "no_structured_output"
    NO_VISION = "no_vision"
    WEAK_REASONING = "weak_reasoning"
    CONTEXT_TOO_SMALL = "context_too_small"
    DIMENSIONS_UNAVAILABLE = "dimensions_unavailable"


class Unsupported(Record, frozen=True, kw_only=True):
    """A reason with a sentence for the owner that names the remedy."""

    reason: UnsupportedReason
    message: str

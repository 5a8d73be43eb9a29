"""What the simulated models say: deterministic, with believable token counts.

A guardrail's content is rejected when a user message contains `FORBIDDEN`, and allowed otherwise. A request for
structured output gets JSON that is valid for its schema; without a native schema, one found in the prompt is taken.
"""

import hashlib
import math
import re
import struct
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from json import JSONDecoder
from typing import Any

import orjson

FORBIDDEN = "FORBIDDEN"
_BYTES_PER_TOKEN = 4
_TOKENS_PER_MESSAGE = 4
_WORDS_OF_PROSE = "The simulated provider has read the request and answers it in one short sentence."


class Finish(StrEnum):
    """Why a model stopped, before each dialect puts it in its own word."""

    STOP = "stop"
    LENGTH = "length"
    REFUSAL = "refusal"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What matters of a request to a model, whatever its dialect."""

    model: str
    system: str
    user: str
    messages: int
    schema: dict[str, Any] | None = None
    wants_json: bool = False
    output_tokens_max: int | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said."""

    text: str
    input_tokens: int
    output_tokens: int
    finish: Finish = Finish.STOP
    pieces: list[str] = field(default_factory=list)


def count_tokens(text: str) -> int:
    """Return a believable number of tokens: a quarter of the bytes."""
    return math.ceil(len(text.encode()) / _BYTES_PER_TOKEN)


def answer(
    prompt: Prompt, *, is_off_schema: bool = False, is_refusal: bool = False, is_cut_short: bool = False
) -> Answer:
    """Say something fitting.

    Args:
        prompt: what was asked.
        is_off_schema: answer with JSON that the schema refuses.
        is_refusal: decline, as a safety-trained model may.
        is_cut_short: stop in the middle, as if the output limit had been reached.
    """
    text = _text(prompt)
    finish = Finish.STOP
    if is_refusal:
        text, finish = "I can't help with that.", Finish.REFUSAL
    elif is_off_schema:
        text = '{"unexpected": "this object fits no schema"}'
    tokens = count_tokens(text)
    limit = prompt.output_tokens_max
    if is_cut_short:
        limit = max(1, tokens // 2)
    if limit is not None and tokens > limit:
        text = text.encode()[: limit * _BYTES_PER_TOKEN].decode(errors="ignore")
        tokens, finish = limit, Finish.LENGTH
    return Answer(
        text=text,
        input_tokens=input_tokens(prompt),
        output_tokens=tokens,
        finish=finish,
        pieces=_pieces(text),
    )


def input_tokens(prompt: Prompt) -> int:
    """Return how many tokens the request counts as."""
    schema = 0 if prompt.schema is None else count_tokens(orjson.dumps(prompt.schema).decode())
    overhead = _TOKENS_PER_MESSAGE * prompt.messages
    return count_tokens(prompt.system) + count_tokens(prompt.user) + schema + overhead


def _text(prompt: Prompt) -> str:
    schema = prompt.schema or _schema_in(prompt.system) or (_schema_in(prompt.user) if prompt.wants_json else None)
    if schema is None:
        return "{}" if prompt.wants_json else _WORDS_OF_PROSE
    return orjson.dumps(JsonMaker(schema, prompt.user).value(schema, "")).decode()


def _pieces(text: str) -> list[str]:
    size = max(1, math.ceil(len(text) / 5))
    return [text[start : start + size] for start in range(0, len(text), size)]


@lru_cache(maxsize=64)
def _schema_in(text: str) -> dict[str, Any] | None:
    """Return the first JSON schema of an object that stands in the text."""
    # orjson cannot say where a value inside a longer text ends.
    decoder = JSONDecoder()
    for found in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, found.start())
        except ValueError:
            continue
        if isinstance(value, dict) and value.get("type") == "object" and "properties" in value:
            return value
    return None


_GOOD_WORDS = ("allow", "approve", "accept", "pass", "safe", "compliant", "ok", "none", "low", "proceed")
_BAD_WORDS = ("block", "reject", "deny", "disallow", "fail", "unsafe", "violat", "forbid", "remove", "high")
_GOOD_FLAGS = ("allow", "approv", "safe", "compliant", "pass", "ok", "acceptable")
_BAD_FLAGS = ("violat", "flag", "block", "reject", "harm", "forbid", "unsafe", "broken", "deny")
_BAD_SCORES = ("score", "risk", "violat", "harm", "toxic", "severity", "probab", "likel")
_QUOTES = ("quote", "excerpt", "evidence", "span", "snippet", "text")
_PER_FINDING = ("finding", "violation", "reason", "quote", "rule", "flag", "categ", "issue", "span", "evidence")


class JsonMaker:
    """Makes JSON that is valid for a schema and fits the content: a verdict, its reasons, its quotes."""

    def __init__(self, schema: dict[str, Any], content: str) -> None:
        """Take the root schema, for its definitions, and the content to judge."""
        self._root = schema
        self._is_bad = FORBIDDEN in content
        self._quote = _quote_from(content)
        rule = re.search(r"\"?(?:rule_id|id)\"?\s*[:=]\s*\"?([\w.\-]+)", content)
        self._rule = "policy" if rule is None else rule[1]

    def value(self, schema: dict[str, Any], name: str) -> Any:
        """Return a value for the schema of the property of that name."""
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"])
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next((each for each in kind if each != "null"), "null")
        make = getattr(self, f"_{kind}")
        return make(schema, name.lower())

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while True:
            if "$ref" in schema:
                node: Any = self._root
                for part in schema["$ref"].removeprefix("#/").split("/"):
                    node = node[part]
                schema = node
            elif "anyOf" in schema or "oneOf" in schema:
                options = schema.get("anyOf") or schema["oneOf"]
                schema = next((each for each in options if each.get("type") != "null"), options[0])
            else:
                return schema

    def _choice(self, options: list[Any]) -> Any:
        words = _BAD_WORDS if self._is_bad else _GOOD_WORDS
        for word in words:
            for option in options:
                if isinstance(option, str) and word in option.lower():
                    return option
        return options[0]

    def _object(self, schema: dict[str, Any], _name: str) -> Any:
        return {key: self.value(each, key) for key, each in schema.get("properties", {}).items()}

    def _array(self, schema: dict[str, Any], name: str) -> Any:
        least = schema.get("minItems", 0)
        count = 1
        if not self._is_bad and any(word in name for word in _PER_FINDING):
            count = 0
        count = min(max(least, count), schema.get("maxItems", max(least, count)))
        return [self.value(schema.get("items", {"type": "string"}), name) for _ in range(count)]

    def _boolean(self, _schema: dict[str, Any], name: str) -> Any:
        if any(word in name for word in _BAD_FLAGS):
            return self._is_bad
        if any(word in name for word in _GOOD_FLAGS):
            return not self._is_bad
        return True

    def _number(self, schema: dict[str, Any], name: str) -> Any:
        value = 0.97
        if any(word in name for word in _BAD_SCORES):
            value = 0.97 if self._is_bad else 0.02
        low, high = schema.get("minimum", 0), schema.get("maximum", 1)
        return round(low + value * (high - low), 4)

    def _integer(self, schema: dict[str, Any], _name: str) -> Any:
        return max(int(schema.get("minimum", 1)), 1) if "maximum" not in schema else int(schema["maximum"])

    def _string(self, schema: dict[str, Any], name: str) -> Any:
        if "rule" in name or name.endswith("id"):
            text = self._rule
        elif any(word in name for word in _QUOTES):
            text = self._quote
        else:
            text = "The content names what the policy forbids." if self._is_bad else "Nothing against the policy."
        return text[: schema.get("maxLength", len(text))].ljust(schema.get("minLength", 0), ".")

    def _null(self, _schema: dict[str, Any], _name: str) -> Any:
        return None


def _quote_from(content: str) -> str:
    at = content.find(FORBIDDEN)
    return content[:40] if at < 0 else content[at : at + len(FORBIDDEN)]


def embed(model: str, text: str, dimensions: int) -> list[float]:
    """Return a vector of norm 1, the same for the same model and text; fewer dimensions are a prefix, normalized."""
    stream = hashlib.shake_128(f"{model}\0{text}".encode()).digest(2 * dimensions)
    values = struct.unpack(f"<{dimensions}h", stream)
    norm = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / norm for value in values]

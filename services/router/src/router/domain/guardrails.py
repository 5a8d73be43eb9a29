"""The guardrail's question and answer: what a model is asked, the form of its answer, where its quotes stand.

The schema that vendors see stays within what all of them support (closed objects, everything required, no bounds); what
it cannot say is checked here when the answer is read.
"""

import functools
import hashlib
import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from catalogue.models import Viability
from router.domain.completions import ChatCall, Message, OutputSchema, Role, TextPart
from router.domain.operations import GuardrailRequest
from router.domain.prompts import Prompt

FINDINGS_MAX: Final = 100
QUOTES_MAX: Final = 100
REASON_LENGTH_MAX: Final = 4_000
RULE_ID_LENGTH_MAX: Final = 64

_STRING: Final = {"type": "string"}
_NUMBER: Final = {"type": "number"}


def _closed(properties: dict[str, object]) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list_of(properties: dict[str, object]) -> dict[str, object]:
    return {"type": "array", "items": _closed(properties)}


# Findings come before the verdict, so that a model without hidden reasoning has reasoned when it decides.
VERDICT_SCHEMA: Final = OutputSchema(
    name="guardrail_verdict",
    schema=_closed(
        {
            "findings": _list_of({"rule_id": _STRING, "reason": _STRING, "score": _NUMBER}),
            "quotes": _list_of({"rule_id": _STRING, "text": _STRING}),
            "score": _NUMBER,
            "verdict": {"type": "string", "enum": ["allow", "review", "block"]},
        }
    ),
)


class Verdict(StrEnum):
    """What the guardrail decided."""

    ALLOW = "allow"
    REVIEW = "review"
    BLOCK = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is said of one rule."""

    rule_id: str
    score: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A place in the content, in code points, the end exclusive."""

    rule_id: str
    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict on content, with what it rests on."""

    verdict: Verdict
    score: float
    findings: tuple[Finding, ...]
    quotes: tuple[Quote, ...]


class UnusableAnswerError(Exception):
    """The model's answer is not of the form that was asked for; the message may go back to the model."""


_Score = Annotated[float, msgspec.Meta(ge=0, le=1)]
_RuleId = Annotated[str, msgspec.Meta(min_length=1, max_length=RULE_ID_LENGTH_MAX)]


class _FindingForm(msgspec.Struct, forbid_unknown_fields=True):
    rule_id: _RuleId
    reason: Annotated[str, msgspec.Meta(max_length=REASON_LENGTH_MAX)]
    score: _Score


class _QuoteForm(msgspec.Struct, forbid_unknown_fields=True):
    rule_id: _RuleId
    text: str


class _AnswerForm(msgspec.Struct, forbid_unknown_fields=True):
    findings: Annotated[list[_FindingForm], msgspec.Meta(max_length=FINDINGS_MAX)]
    quotes: Annotated[list[_QuoteForm], msgspec.Meta(max_length=QUOTES_MAX)]
    score: _Score
    verdict: Verdict


_DECODER: Final = msgspec.json.Decoder(_AnswerForm)
# Models that cannot be held to a schema wrap their JSON in a fence or in words.
_FIRST_TO_LAST_BRACE: Final = re.compile(r"\{.*\}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class GuardrailPrompts:
    """The prompts of a guardrail evaluation."""

    judge: Prompt
    repair: Prompt

    @property
    def version(self) -> str:
        """Return the version that answers name."""
        return self.judge.version


def judging_call(request: GuardrailRequest, prompts: GuardrailPrompts, viability: Viability) -> ChatCall:
    """Return the call that asks a model to judge, with the most output that makes sense."""
    if request.rules:
        policy = "\n\n".join(f"## Rule `{rule.rule_id}`\n\n{rule.description}" for rule in request.rules)
        rule_ids = "one of the rule names above, exactly as written"
    else:
        policy = request.policy_text
        rule_ids = "a short name for the part of the policy, such as `harassment`"
    # The marker is derived from the content, so that the content cannot contain it and end its own quotation.
    marker = hashlib.sha256(request.content.encode()).hexdigest()[:16]
    content = f"<<<content {marker}\n{request.content}\ncontent {marker}>>>"
    return ChatCall(
        system=_instructions(prompts.judge, policy, rule_ids),
        messages=(Message(role=Role.USER, parts=(TextPart(text=content),)),),
        output_tokens_max=viability.output_tokens_max,
        schema=VERDICT_SCHEMA,
        effort=viability.effort,
        temperature=0.0,
    )


@functools.lru_cache(maxsize=256)
def _instructions(prompt: Prompt, policy: str, rule_ids: str) -> str:
    # A platform judges most of its content by a handful of policies.
    return prompt.fill({"policy": policy, "rule_ids": rule_ids})


def repairing_call(call: ChatCall, *, answer: str, problem: str, prompts: GuardrailPrompts) -> ChatCall:
    """Return the call that shows a model its unusable answer and asks again."""
    again = Message(role=Role.USER, parts=(TextPart(text=prompts.repair.fill({"problem": problem})),))
    # Vendors refuse an empty turn of the assistant; without one the same question simply stands again.
    spoken = (Message(role=Role.ASSISTANT, parts=(TextPart(text=answer),)), again) if answer.strip() else ()
    return replace(call, messages=(*call.messages, *spoken))


def read_judgement(text: str, request: GuardrailRequest) -> Judgement:
    """Return the judgement that a model wrote, with its quotes located in the content.

    Raises:
        UnusableAnswerError: The text is no JSON of the form asked for, or names a rule that was not given.
    """
    form = _decode(text)
    known = frozenset(rule.rule_id for rule in request.rules)
    named = {each.rule_id for each in form.findings} | {each.rule_id for each in form.quotes}
    unknown = named - known if known else set()
    if unknown:
        raise UnusableAnswerError("`rule_id` must be one of the rule names of the policy, exactly as written")
    return Judgement(
        verdict=form.verdict,
        score=form.score,
        findings=tuple(Finding(rule_id=each.rule_id, score=each.score, reason=each.reason) for each in form.findings),
        quotes=locate_quotes(request.content, [(each.rule_id, each.text) for each in form.quotes]),
    )


def _decode(text: str) -> _AnswerForm:
    try:
        return _DECODER.decode(text)
    except msgspec.ValidationError as error:
        raise UnusableAnswerError(str(error)) from None
    except msgspec.DecodeError:
        found = _FIRST_TO_LAST_BRACE.search(text)
    if found is None:
        raise UnusableAnswerError("it holds no JSON object")
    try:
        return _DECODER.decode(found[0])
    except msgspec.DecodeError as error:
        raise UnusableAnswerError(str(error)) from None


def locate_quotes(content: str, quotes: list[tuple[str, str]]) -> tuple[Quote, ...]:
    """Return where quotes stand in the content; those that are not in it are left out.

    Models copy words well and count badly, so that places are found, never believed. A quote that differs only in case,
    white space or typographic marks is found too, and given as it stands in the content.
    """
    if not quotes:
        return ()
    located: list[Quote] = []
    seen: dict[tuple[str, str], int] = {}
    folded: _Folded | None = None
    for rule_id, text in quotes:
        begin = seen.get((rule_id, text), 0)
        span = _find(content, text, begin)
        if span is None:
            folded = folded or _Folded(content)
            span = folded.find(text, begin)
        if span is not None:
            start, end = span
            seen[(rule_id, text)] = end
            located.append(Quote(rule_id=rule_id, text=content[start:end], start=start, end=end))
    return tuple(located)


def _find(content: str, text: str, begin: int) -> tuple[int, int] | None:
    if not text.strip():
        return None
    start = content.find(text, begin)
    return None if start < 0 else (start, start + len(text))


_SAME: Final = str.maketrans({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "-", 0xA0: " "})


class _Folded:
    """A content without the differences that models make when they copy, and the way back to its places."""

    def __init__(self, content: str) -> None:
        letters: list[str] = []
        places: list[int] = []
        was_space = False
        for place, letter in enumerate(content.translate(_SAME)):
            is_space = letter.isspace()
            if is_space and was_space:
                continue
            was_space = is_space
            for each in " " if is_space else letter.casefold():
                letters.append(each)
                places.append(place)
        self._text = "".join(letters)
        self._places = places

    def find(self, text: str, begin: int) -> tuple[int, int] | None:
        """Return the span in the original content, at or after `begin`."""
        wanted = " ".join(text.translate(_SAME).split()).casefold()
        if not wanted:
            return None
        at = -1
        while (at := self._text.find(wanted, at + 1)) >= 0:
            if self._places[at] >= begin:
                return self._places[at], self._places[at + len(wanted) - 1] + 1
        return None

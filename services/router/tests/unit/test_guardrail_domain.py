"""The guardrail's form of answer, its prompts and its quotes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.domain.guardrails import VERDICT_SCHEMA, UnusableAnswerError, Verdict, locate_quotes, read_judgement
from router.domain.operations import GuardrailRule
from router.domain.prompts import Prompt
from services.router.tests.kit import Workbench, prompts, verdict

BENCH = Workbench()


def test_the_shipped_prompts_have_exactly_the_places_that_are_filled() -> None:
    """A prompt that gains or loses a place is a new version with new code."""
    shipped = prompts()
    assert shipped.judge.places() == {"policy", "rule_ids"}
    assert shipped.repair.places() == {"problem"}
    assert shipped.version == "guardrail_v1"


def test_a_filling_is_never_read_as_a_place() -> None:
    """A policy that looks like a template cannot pull in other values."""
    assert Prompt("p", "{{a}} {{b}}").fill({"a": "{{b}}", "b": "x"}) == "{{b}} x"


def test_the_schema_stays_within_what_all_vendors_support() -> None:
    """Closed objects, everything required, no bounds, no recursion."""

    def check(schema: object) -> None:
        if isinstance(schema, dict):
            assert not set(schema) & {"minimum", "maximum", "minLength", "maxLength", "maxItems", "$ref", "pattern"}
            if schema.get("type") == "object":
                assert schema["additionalProperties"] is False
                assert schema["required"] == list(schema["properties"])
            for value in schema.values():
                check(value)

    check(VERDICT_SCHEMA.schema)
    assert list(json.loads(json.dumps(VERDICT_SCHEMA.schema))["properties"])[-1] == "verdict"


@pytest.mark.parametrize(
    "text",
    [
        verdict("block"),
        f"```json\n{verdict('block')}\n```",
        f"Here is my judgement:\n{verdict('block')}\nI hope it helps.",
        f"\n\n  {verdict('block')}  ",
    ],
)
def test_json_is_found_where_models_put_it(text: str) -> None:
    """A fence or words around the object do not matter."""
    assert read_judgement(text, BENCH.guardrail()).verdict is Verdict.BLOCK


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "[]",
        "{",
        "{}",
        verdict("perhaps"),
        verdict(score=1.5),
        verdict(score=-0.1),
        verdict(extra=1),
        verdict(findings=[{"rule_id": "", "reason": "", "score": 0}]),
        verdict(findings=[{"rule_id": "r", "score": 0}]),
        verdict(quotes=[{"rule_id": "r", "text": 5}]),
        verdict(quotes=[{"rule_id": "r", "text": "x"}] * 101),
        verdict().replace("0.0", "NaN"),
    ],
)
def test_other_forms_are_unusable(text: str) -> None:
    """What the vendor's schema cannot say is checked here."""
    with pytest.raises(UnusableAnswerError):
        read_judgement(text, BENCH.guardrail())


def test_a_rule_that_was_not_given_is_unusable() -> None:
    """With named rules, findings and quotes name one of them."""
    request = BENCH.guardrail(policy_text="", rules=(GuardrailRule(rule_id="ads", description="No ads."),))
    finding = {"rule_id": "ads", "reason": "x", "score": 1}
    assert read_judgement(verdict(findings=[finding]), request).findings[0].rule_id == "ads"
    with pytest.raises(UnusableAnswerError):
        read_judgement(verdict(findings=[finding | {"rule_id": "spam"}]), request)


def test_repeated_quotes_are_found_at_their_next_place() -> None:
    """The same words quoted twice are two places, as long as there are two."""
    quotes = locate_quotes("no no", [("r", "no"), ("r", "no"), ("r", "no")])
    assert [(quote.start, quote.end) for quote in quotes] == [(0, 2), (3, 5)]


@given(content=st.text(max_size=80), start=st.integers(0, 79), length=st.integers(1, 20))
def test_a_copied_passage_is_always_found_as_it_stands(content: str, start: int, length: int) -> None:
    """Whatever was copied character by character is located, at a place that holds it."""
    passage = content[start : start + length]
    quotes = locate_quotes(content, [("r", passage)])
    assert all(content[quote.start : quote.end] == quote.text for quote in quotes)
    assert bool(quotes) == bool(passage.strip())


@given(content=st.text(max_size=60), quote=st.text(max_size=20))
def test_places_lie_within_the_content(content: str, quote: str) -> None:
    """No quote, however odd, leads outside of the content."""
    for found in locate_quotes(content, [("r", quote)]):
        assert 0 <= found.start < found.end <= len(content)

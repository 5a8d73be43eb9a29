from datetime import timedelta

import pytest

from servicekit.errors import DomainError, FieldViolation, InvalidArgumentError, OverloadedError


class SomeError(DomainError):
    """Something happened."""


def test_an_error_carries_message_and_facts() -> None:
    """Facts are keyword-only and separate from the text."""
    error = SomeError("It happened.", key_id="k1", tries=3)
    assert str(error) == error.message == "It happened."
    assert error.facts == {"key_id": "k1", "tries": 3}
    assert (error.retry_after, error.violations, error.quota) == (None, (), ())


def test_an_error_can_be_raised_through_a_context_manager() -> None:
    """Contextlib assigns the traceback; an error that forbids that masks itself."""
    error = SomeError("x")
    error.__traceback__ = None
    with pytest.raises(SomeError):
        raise error from ValueError("cause")


def test_violations_make_the_message() -> None:
    """Each field and its remedy can be read in the text as well."""
    error = InvalidArgumentError(
        violations=[
            FieldViolation(field="a", reason="EMPTY", description="must not be empty"),
            FieldViolation(field="b[1]", reason="TOO_LONG", description="must have at most 5 characters"),
        ]
    )
    assert error.message == "a: must not be empty; b[1]: must have at most 5 characters"
    assert InvalidArgumentError("Own words.", violations=error.violations).message == "Own words."


def test_overload_says_when_to_come_back() -> None:
    """A caller that is turned away knows for how long."""
    assert OverloadedError("Full.").retry_after == timedelta(seconds=1)

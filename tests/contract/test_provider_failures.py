"""Every vendor's failures in its own words, as the provider simulator speaks them, mean the same to the Router.

The simulator's words and the Router's tables were written apart from each other, from the vendors' documentation and
from what users report; here they are held against one another.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson
import pytest

from catalogue.book import load_catalogue
from catalogue.models import Model
from router.domain import errors
from router.domain.errors import KeyState
from router.domain.routes import Route
from router.domain.wire import WireResponse
from router.providers.registry import Codecs
from testkit.simulator.failures import failure_of, stream_error
from testkit.simulator.faults import FaultKind, FaultRule, RetryForm
from testkit.simulator.vendors import VENDORS

NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
KEY = "canary-key-that-a-vendor-may-echo"
CATALOGUE = load_catalogue()
CODECS = Codecs()

MEANING = {
    FaultKind.BAD_KEY: errors.KeyRejectedError,
    FaultKind.NO_CREDIT: errors.NoCreditError,
    FaultKind.PAYMENT_REQUIRED: errors.NoCreditError,
    FaultKind.FORBIDDEN: errors.PermissionRefusedError,
    FaultKind.CONTENT_REFUSED: errors.ContentRefusedError,
    FaultKind.MODEL_GONE: errors.ModelGoneError,
    FaultKind.TIMED_OUT: errors.ProviderUnavailableError,
    FaultKind.CONFLICT: errors.ProviderUnavailableError,
    FaultKind.TOO_LARGE: errors.ContextExceededError,
    FaultKind.BAD_REQUEST: errors.BadRequestError,
    FaultKind.THROTTLED: errors.ThrottledError,
    FaultKind.DAILY_QUOTA: errors.DailyQuotaError,
    FaultKind.SERVER_ERROR: errors.ProviderUnavailableError,
    FaultKind.BAD_GATEWAY: errors.ProviderUnavailableError,
    FaultKind.OVERLOADED: errors.ProviderOverloadedError,
}
OWN_MEANING = {
    # A restricted organization is shut out altogether; adding credit does not open it.
    ("groq", FaultKind.NO_CREDIT): errors.KeyRejectedError,
    # A limit that its owner set on the key is met; raising it, like adding credit, opens it again.
    ("openrouter", FaultKind.FORBIDDEN): errors.NoCreditError,
    # A weekly allowance comes back by itself.
    ("ollama", FaultKind.NO_CREDIT): errors.DailyQuotaError,
    # It has no moderation of its own.
    ("ollama", FaultKind.CONTENT_REFUSED): errors.BadRequestError,
}
CASES = [(slug, kind) for slug in sorted(VENDORS) for kind in MEANING]


@pytest.mark.parametrize(("slug", "kind"), CASES)
def test_a_failure_in_the_vendors_words_has_its_meaning(slug: str, kind: FaultKind) -> None:
    """Class and consequence for the key follow from the vendor's words; the words themselves go nowhere."""
    expected = OWN_MEANING.get((slug, kind), MEANING[kind])
    error = _classified(slug, FaultRule(kind=kind))
    assert type(error) is expected, error.rule
    changes = {errors.KeyRejectedError: KeyState.INVALID, errors.NoCreditError: KeyState.NO_CREDIT}
    assert error.key_state is changes.get(expected)
    assert not error.may_have_been_billed
    assert KEY not in f"{error}{error.facts}{error.rule}"


@pytest.mark.parametrize("slug", sorted(VENDORS))
def test_no_capacity_is_retryable_and_leaves_the_key_alone(slug: str) -> None:
    """A 503 is somebody's trouble, but not the key's."""
    error = _classified(slug, FaultRule(kind=FaultKind.UNAVAILABLE))
    assert isinstance(error, errors.ProviderUnavailableError | errors.ProviderOverloadedError)
    assert error.retryable
    assert error.key_state is None


@pytest.mark.parametrize("slug", sorted(VENDORS))
@pytest.mark.parametrize("form", [form for form in RetryForm if form is not RetryForm.NONE])
def test_every_form_of_retry_after_is_read(slug: str, form: RetryForm) -> None:
    """However a vendor says when to come back, it is understood, to the second."""
    rule = FaultRule(kind=FaultKind.THROTTLED, retry_form=form, retry_after_seconds=42)
    error = _classified(slug, rule)
    assert error.retry_after is not None
    assert abs(error.retry_after - timedelta(seconds=42)) <= timedelta(seconds=1)


@pytest.mark.parametrize("slug", sorted(VENDORS))
def test_an_error_inside_a_stream_keeps_its_meaning(slug: str) -> None:
    """The same words inside a stream mean the same, and what came before may have been billed."""
    failure = failure_of(
        VENDORS[slug],
        FaultRule(kind=FaultKind.ERROR_MID_STREAM, failure=FaultKind.THROTTLED),
        model="m",
        key=KEY,
        now=NOW,
    )
    route = _route(slug)
    head = WireResponse(status=200, headers={}, body=b"", receive_time=NOW)
    decoder = CODECS.chat(route).decode_stream(head, route)
    decoder.feed(stream_error(VENDORS[slug], failure))
    assert decoder.failure is not None
    with pytest.raises(errors.ProviderError) as caught:
        decoder.finish()
    assert caught.value.may_have_been_billed
    assert type(caught.value) in {errors.ThrottledError, errors.ProviderUnavailableError}


def _classified(slug: str, rule: FaultRule) -> errors.ProviderError:
    failure = failure_of(VENDORS[slug], rule, model="some-model", key=KEY, now=NOW)
    headers = {name.lower(): value for name, value in failure.headers.items()}
    response = WireResponse(status=failure.status, headers=headers, body=orjson.dumps(failure.body), receive_time=NOW)
    route = _route(slug)
    return CODECS.chat(route).classify(response, route)


def _route(slug: str) -> Route:
    row = CATALOGUE.provider(slug)
    assert row is not None
    model = Model(provider=slug, model_id="some-model")
    return Route(provider=slug, dialect=row.dialect, base_url="https://provider.test", model=model)

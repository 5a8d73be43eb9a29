"""Every fault does to a caller what its name says, and the ledger knows which calls were charged for."""

import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import pytest

from testkit.simulator.client import SimulatorControl
from testkit.simulator.control import KeyRules
from testkit.simulator.faults import FaultKind, RetryForm
from testkit.simulator.ledger import key_fingerprint
from testkit.simulator.server import Simulator
from testkit.simulator.vendors import VENDORS, make_key


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Serve over http."""
    async with Simulator() as running:
        yield running


@pytest.fixture
async def control(simulator: Simulator) -> AsyncIterator[SimulatorControl]:
    """Steer it."""
    async with SimulatorControl(simulator.addresses) as client:
        yield client


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client that gives up."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as client:
        yield client


class Caller:
    """Makes one chat call to a vendor over http."""

    def __init__(self, session: aiohttp.ClientSession, simulator: Simulator, vendor: str) -> None:
        self._session = session
        self.vendor = vendor
        self.key = make_key(vendor, "caller")
        self._url = simulator.addresses.http_base_url(vendor)
        self._path = {"anthropic": "/v1/messages", "ollama": "/api/chat"}.get(vendor, "/chat/completions")

    def post(self, *, stream: bool = False, content: str = "hello") -> Any:
        header = {"x-api-key": self.key} if self.vendor == "anthropic" else {"authorization": f"Bearer {self.key}"}
        body = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": content}], "stream": stream}
        return self._session.post(self._url + self._path, json=body, headers=header, allow_redirects=False)


@pytest.fixture
def caller(session: aiohttp.ClientSession, simulator: Simulator) -> Caller:
    """Call OpenAI."""
    return Caller(session, simulator, "openai")


_STATUSES = {
    "bad_key": {"": 401},
    "no_credit": {
        "anthropic": 400,
        "openai": 429,
        "groq": 400,
        "together": 402,
        "fireworks": 412,
        "deepseek": 402,
        "cerebras": 402,
        "openrouter": 402,
        "ollama": 402,
    },
    "payment_required": {"": 402},
    "forbidden": {"": 403},
    "content_refused": {"": 400, "openrouter": 403},
    "model_gone": {"": 404, "deepseek": 400},
    "timed_out": {"": 408},
    "conflict": {"": 409},
    "too_large": {"": 413},
    "bad_request": {"": 400},
    "throttled": {"": 429},
    "daily_quota": {"": 429},
    "server_error": {"": 500},
    "bad_gateway": {"": 502},
    "unavailable": {"": 503},
    "overloaded": {"": 529, "cerebras": 429, "ollama": 503},
}


@pytest.mark.parametrize("vendor", list(VENDORS))
async def test_failures_come_in_each_vendors_own_words(
    session: aiohttp.ClientSession, simulator: Simulator, control: SimulatorControl, vendor: str
) -> None:
    """Every failure has the vendor's status and a message; the call after it succeeds; nothing is charged for it."""
    caller = Caller(session, simulator, vendor)
    for kind, statuses in _STATUSES.items():
        await control.add_fault(kind, vendor=vendor)
        async with caller.post() as response:
            assert response.status == statuses.get(vendor, statuses.get("")), kind
            body = await response.json()
            message = body.get("message") or (body["error"] if vendor == "ollama" else body["error"]["message"])
            assert message
            assert caller.key not in json.dumps(body)
        async with caller.post() as response:
            assert response.status == 200, kind
    entries = await control.ledger()
    assert [entry.is_billed for entry in entries] == [False, True] * len(_STATUSES)


@pytest.mark.parametrize(
    ("form", "header"),
    [
        (RetryForm.SECONDS, "retry-after"),
        (RetryForm.HTTP_DATE, "retry-after"),
        (RetryForm.MILLISECONDS, "retry-after-ms"),
        (RetryForm.RESET_DURATION, "x-ratelimit-reset-requests"),
        (RetryForm.RESET_TIMESTAMP, "x-ratelimit-requests-reset"),
        (RetryForm.EPOCH_MILLISECONDS, "x-ratelimit-reset"),
    ],
)
async def test_the_time_to_come_back_is_said_in_every_form(
    caller: Caller, control: SimulatorControl, form: RetryForm, header: str
) -> None:
    """A throttled call names when to come back in the form asked for."""
    await control.add_fault(FaultKind.THROTTLED, retry_form=form, retry_after_seconds=90)
    asked_at = datetime.now(UTC)
    async with caller.post() as response:
        assert response.status == 429
        value = response.headers[header]
    if form is RetryForm.SECONDS:
        assert value == "90"
    elif form is RetryForm.MILLISECONDS:
        assert value == "90000"
    elif form is RetryForm.RESET_DURATION:
        assert value == "1m30s"
    elif form is RetryForm.HTTP_DATE:
        assert 85 < (parsedate_to_datetime(value) - asked_at).total_seconds() < 95
    elif form is RetryForm.RESET_TIMESTAMP:
        assert 85 < (datetime.fromisoformat(value) - asked_at).total_seconds() < 95
    else:
        assert 85 < int(value) / 1_000 - asked_at.timestamp() < 95


async def test_gemini_says_it_in_the_body(caller: Caller, control: SimulatorControl) -> None:
    """The body form carries google.rpc.RetryInfo."""
    await control.add_fault(FaultKind.THROTTLED, retry_form=RetryForm.RETRY_DELAY_IN_BODY, retry_after_seconds=7)
    async with caller.post() as response:
        assert "retry-after" not in response.headers
        assert (await response.json())["error"]["details"][0]["retryDelay"] == "7s"


async def test_rules_count_and_skip_and_select(caller: Caller, control: SimulatorControl) -> None:
    """A rule passes what it should skip, strikes as often as it says, and only where it applies."""
    rule = await control.add_fault(FaultKind.SERVER_ERROR, skip=1, times=2, contains="wasp")
    statuses = []
    for content in ("wasp", "calm", "wasp", "wasp", "wasp"):
        async with caller.post(content=content) as response:
            statuses.append(response.status)
    assert statuses == [200, 200, 500, 500, 200]
    assert await control.fault_hits(rule) == 2
    await control.add_fault(FaultKind.SERVER_ERROR, times=None, key_fingerprint=key_fingerprint(caller.key))
    for _ in range(3):
        async with caller.post() as response:
            assert response.status == 500
    await control.clear_faults()
    async with caller.post() as response:
        assert response.status == 200


async def test_a_marked_key_meets_its_fault_every_time(session: aiohttp.ClientSession, simulator: Simulator) -> None:
    """The fault in a key's name needs no control call."""
    caller = Caller(session, simulator, "groq")
    caller.key = make_key("groq", "x", fault="no_credit")
    for _ in range(2):
        async with caller.post() as response:
            assert response.status == 400
            assert (await response.json())["error"]["code"] == "organization_restricted"


async def test_revoked_and_unknown_keys_are_refused(caller: Caller, control: SimulatorControl) -> None:
    """A key can be withdrawn, and the good ones can be listed."""
    await control.set_keys(KeyRules(revoked=[key_fingerprint(caller.key)]))
    async with caller.post() as response:
        assert response.status == 401
    await control.set_keys(KeyRules(known=[]))
    async with caller.post() as response:
        assert response.status == 401
    await control.set_keys(KeyRules())
    async with caller.post() as response:
        assert response.status == 200


async def test_an_error_can_come_inside_a_200(caller: Caller, control: SimulatorControl) -> None:
    """The status says yes, the body says no."""
    await control.add_fault(FaultKind.ERROR_IN_200, failure=FaultKind.THROTTLED)
    async with caller.post() as response:
        assert response.status == 200
        assert (await response.json())["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "groq", "ollama"])
async def test_an_error_can_come_mid_stream(
    session: aiohttp.ClientSession, simulator: Simulator, control: SimulatorControl, vendor: str
) -> None:
    """A stream begins well and ends in the vendor's error event; what was said until then is charged for."""
    caller = Caller(session, simulator, vendor)
    await control.add_fault(FaultKind.ERROR_MID_STREAM, failure=FaultKind.OVERLOADED)
    async with caller.post(stream=True) as response:
        assert response.status == 200
        text = await response.text()
    last = text.strip().splitlines()[-1].removeprefix("data: ")
    assert json.loads(last)["error"]
    assert len(text.strip().splitlines()) > 2
    (entry,) = await control.ledger()
    assert entry.is_billed
    assert not entry.is_sent


async def test_answers_that_are_not_what_was_asked_for(caller: Caller, control: SimulatorControl) -> None:
    """Off the schema, declined, cut short, without usage, empty."""
    for kind in (
        FaultKind.OFF_SCHEMA,
        FaultKind.REFUSAL,
        FaultKind.CUT_SHORT,
        FaultKind.NO_USAGE,
        FaultKind.EMPTY_ANSWER,
    ):
        await control.add_fault(kind)
    bodies = []
    for _ in range(5):
        async with caller.post() as response:
            bodies.append(await response.json())
    off, refused, cut, uncounted, empty = bodies
    assert "unexpected" in off["choices"][0]["message"]["content"]
    assert refused["choices"][0]["message"]["refusal"]
    assert cut["choices"][0]["finish_reason"] == "length"
    assert "usage" not in uncounted
    assert empty["choices"][0]["message"]["content"] is None


async def test_broken_bodies(caller: Caller, control: SimulatorControl) -> None:
    """Half a JSON, JSON of another shape, none, and HTML."""
    await control.add_fault(FaultKind.MALFORMED_JSON)
    async with caller.post() as response:
        with pytest.raises(json.JSONDecodeError):
            json.loads(await response.read())
    await control.add_fault(FaultKind.ODD_SHAPE)
    async with caller.post() as response:
        odd = await response.json()
        assert isinstance(odd["choices"], dict)
        assert isinstance(odd["usage"], list)
    await control.add_fault(FaultKind.EMPTY_BODY)
    async with caller.post() as response:
        assert await response.read() == b""
    await control.add_fault(FaultKind.WRONG_CONTENT_TYPE)
    async with caller.post() as response:
        assert response.status == 200
        assert response.content_type == "text/html"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_body_can_end_early(caller: Caller, control: SimulatorControl, stream: bool) -> None:  # noqa: FBT001  # A table of cases.
    """The connection closes before the promised end; the vendor charges all the same."""
    await control.add_fault(FaultKind.TRUNCATED_BODY)
    async with caller.post(stream=stream) as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    (entry,) = await control.ledger()
    assert entry.is_billed
    assert not entry.is_sent


async def test_resets_come_before_or_after_the_request_was_read(caller: Caller, control: SimulatorControl) -> None:
    """Both cut the connection; only the second may have been charged for."""
    for kind in (FaultKind.RESET_BEFORE_READ, FaultKind.RESET_AFTER_READ):
        # A client may quietly try again on a fresh connection when a kept-alive one is reset.
        rule = await control.add_fault(kind, times=None)
        with pytest.raises(aiohttp.ClientError):
            async with caller.post():
                pass
        assert await control.fault_hits(rule) >= 1
        await control.clear_faults()
    entries = await control.ledger()
    assert {entry.fault: entry.is_billed for entry in entries} == {"reset_before_read": False, "reset_after_read": True}


async def test_slow_heads_and_stalls_outlast_a_time_out(simulator: Simulator, control: SimulatorControl) -> None:
    """A caller with a time-out meets it, before the head or in the middle of the body."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.3)) as session:
        caller = Caller(session, simulator, "openai")
        for kind, stream in ((FaultKind.SLOW_HEADERS, False), (FaultKind.STALL_MID_STREAM, True)):
            await control.add_fault(kind, delay_seconds=5)
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                async with caller.post(stream=stream) as response:
                    await response.read()
            assert time.monotonic() - started < 2


async def test_huge_bodies_and_bombs_are_as_big_as_they_say(caller: Caller, control: SimulatorControl) -> None:
    """A bomb is small on the wire and big unpacked; both are valid JSON, so only a bound protects."""
    await control.add_fault(FaultKind.HUGE_BODY, size_bytes=3_000_000)
    async with caller.post() as response:
        assert len(json.loads(await response.read())["padding"]) >= 3_000_000
    await control.add_fault(FaultKind.DECOMPRESSION_BOMB, size_bytes=8_000_000)
    async with caller.post() as response:
        assert int(response.headers["content-length"]) < 100_000
        assert len(json.loads(await response.read())["padding"]) >= 8_000_000


async def test_a_redirect_points_into_the_private_network(caller: Caller, control: SimulatorControl) -> None:
    """A caller that followed it would reach the metadata service."""
    await control.add_fault(FaultKind.REDIRECT)
    async with caller.post() as response:
        assert response.status == 307
        assert response.headers["location"].startswith("https://169.254.169.254")


async def test_an_echoed_key_is_all_over_the_answer(caller: Caller, control: SimulatorControl) -> None:
    """The canary test needs a provider that says the key back."""
    await control.add_fault(FaultKind.ECHO_KEY, status=500)
    async with caller.post() as response:
        assert response.status == 500
        assert caller.key in await response.text()
        assert caller.key in response.headers["x-echo-authorization"]


async def test_the_ledger_finds_calls_by_marker_and_holds_no_key(
    caller: Caller, control: SimulatorControl, simulator: Simulator
) -> None:
    """Sums agree with entries; neither key nor content is kept."""
    for number in range(3):
        async with caller.post(content=f"call marker:job-{number}"):
            pass
    (entry,) = await control.ledger(marker="job-1")
    assert entry.key_fingerprint == key_fingerprint(caller.key)
    assert entry.is_sent
    assert entry.status == 200
    totals = await control.totals()
    entries = await control.ledger()
    assert totals.billed_calls == len(entries) == 3
    assert totals.input_tokens == sum(each.input_tokens for each in entries)
    assert caller.key not in repr(simulator.state.ledger.entries())

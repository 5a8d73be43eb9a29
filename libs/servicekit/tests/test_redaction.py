"""The canary: a key of each vendor's shape, put wherever a careless line might put it, is in no log."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from byok.keyvault.v1 import lease_service_pb2 as pb
from servicekit.clock import SystemClock
from servicekit.ids import new_uuid7
from servicekit.redaction import redact_text, redact_value
from servicekit.secrets import Secret
from servicekit.telemetry import configure_logging

CANARIES = {
    "anthropic": "sk-ant-api03-Ab3dEf6hIj9lMn0pQr_StUv-WxYz1234567890abcdefgh-AA",
    "openai": "sk-Ab3dEf6hIj9lMn0pQrStUvWxYz1234567890abcdefghij",
    "openai project": "sk-proj-Ab3dEf6h_Ij9lMn0pQrStUv-WxYz1234567890",
    "openrouter": "sk-or-v1-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "deepseek": "sk-0123456789abcdef0123456789abcdef",
    "groq": "gsk_Ab3dEf6hIj9lMn0pQrStUvWxYz1234567890abcdefghijklmnop",
    "google": "AIzaSyAb3dEf6hIj9lMn0pQrStUvWxYz1234567",
    "voyage": "pa-Ab3dEf6hIj9lMn0pQrStUvWxYz1234567890abcdefg",
    "cerebras": "csk-ab3def6hij9lmn0pqrstuvwxyz1234567890abcdefgh",
    "fireworks": "fw_Ab3dEf6hIj9lMn0pQrStUvWx",
    "together": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "together new": "tgp_v1_Ab3dEf6hIj9lMn0pQrStUvWxYz1234567890abcdefg",
    "cohere": "Ab3dEf6hIj9lMn0pQrStUvWxYz1234567890abcd",
    "mistral": "Ab3dEf6hIj9lMn0pQrStUvWxYz123456",
    "base64 key": "q83vEjRWeJCrze8SNFZ4kKvN7xI0VniQq83vEjRWeJA=",
    "bearer": "Bearer opaque-token-value",
}


def _sentence(*parts: str) -> str:
    """Stand for the f-string of a careless line, which the linter would not let pass here either."""
    return "".join(parts)


_PLACES: dict[str, Callable[[Any, str], None]] = {
    "message": lambda log, key: log.info(_sentence("got ", key, " from provider")),
    "message after a newline": lambda log, key: log.info(_sentence("body:\n", key, "\n")),
    "quoted in a message": lambda log, key: log.warning(_sentence("{'error': 'Bad key: ", key, ".'}")),
    "keyword": lambda log, key: log.info("event", text=key),
    "nested": lambda log, key: log.info("event", body={"a": [{"b": ("x", f"it is {key}")}]}),
    "a key of a mapping": lambda log, key: log.info("event", body={key: 1}),
    "url": lambda log, key: log.info("event", url=f"https://host/v1/models?key={key}&alt=sse"),
    "header": lambda log, key: log.info("event", headers={"Authorization": f"Bearer {key}"}),
    "secret field name": lambda log, key: log.info("event", api_key=key),
    "an exception as a value": lambda log, key: log.info("event", error=ValueError(f"bad key {key}")),
    "bytes": lambda log, key: log.info("event", body=key.encode()),
    "a message object": lambda log, key: log.info("event", request=pb.AcquireLeasesRequest(holder=key)),
    "a secret": lambda log, key: log.info("event", value=Secret(key)),
    "standard logging": lambda _log, key: logging.getLogger("vendor.sdk").warning("sent %s", {"headers": key}),
}


@pytest.fixture
def output() -> Iterator[Callable[[], bytes]]:
    """Return a function that reads all that was logged, at the most talkative level."""
    stream = io.BytesIO()
    writer = configure_logging("test", level="debug", stream=stream, is_final=False)

    def read() -> bytes:
        writer.flush()
        return stream.getvalue()

    yield read
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)


@pytest.mark.parametrize("place", _PLACES)
@pytest.mark.parametrize("vendor", CANARIES)
def test_the_canary_is_in_no_line(output: Callable[[], bytes], place: str, vendor: str) -> None:
    """Whatever the place and the vendor, the line is written and the key is not in it."""
    canary = CANARIES[vendor]
    _PLACES[place](structlog.get_logger(), canary)
    written = output()
    assert written.count(b"\n") == 1
    json.loads(written)
    assert _core(canary) not in written


@pytest.mark.parametrize("vendor", CANARIES)
def test_the_canary_is_in_no_traceback(output: Callable[[], bytes], vendor: str) -> None:
    """Exception text, chained causes and notes included, is redacted; the rest of the traceback is there."""
    canary = CANARIES[vendor]
    try:
        try:
            int(canary)
        except ValueError as cause:
            error = RuntimeError(f"failed: {canary}")
            error.add_note(f"note {canary}")
            raise error from cause
    except RuntimeError:
        structlog.get_logger().exception("call.failed")
    written = output()
    assert _core(canary) not in written
    assert b"RuntimeError" in written
    assert b"test_redaction.py" in written


@pytest.mark.parametrize(
    "text",
    [
        "rpc.finished",
        "/byok.keyvault.v1.LeaseService/AcquireLeases",
        "spiffe://byok.local/ns/byok/sa/router",
        "the task-scheduler and the risk-assessment are done",
        "/opt/byok/libs/servicekit/src/servicekit/coalescer.py",
        "input_tokens=1234567 output_tokens=7654321",
        "partition_generation_sequence_of_the_ledger",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        "palindromes and fwoosh and alphabetical order",
        "https://localhost:8443/v1/messages",
        pytest.param(new_uuid7(SystemClock().now()), id="an id"),
        pytest.param(f"agent:{new_uuid7(SystemClock().now())}", id="an id after a word"),
        pytest.param(f"{new_uuid7(SystemClock().now())}/{new_uuid7(SystemClock().now())}", id="two ids"),
    ],
)
def test_what_operators_search_for_stays(text: str) -> None:
    """Ids, methods, paths and counts are not mistaken for keys."""
    assert redact_text(text) == text


def test_passwords_in_urls_go_and_hosts_stay() -> None:
    """A DSN in an error message keeps its host."""
    assert redact_text("cannot reach postgresql://byok:hunter22@db:5432/keyvault") == (
        "cannot reach postgresql://[redacted]@db:5432/keyvault"
    )


def test_secret_names_go_and_token_counts_stay() -> None:
    """The name of a field decides, at any depth; counts that only sound alike stay."""
    value = {
        "usage": {"input_tokens": 5},
        "db": {"password": "x", "Authorization": "y"},
        "token": "z",
        "secret_id": "s",
    }
    assert redact_value(value) == {
        "usage": {"input_tokens": 5},
        "db": {"password": "[redacted]", "Authorization": "[redacted]"},
        "token": "[redacted]",
        "secret_id": "s",
    }


def test_a_private_key_goes_as_a_whole() -> None:
    """A PEM private key, also one cut off, leaves nothing of its body."""
    pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIrYSSNQFaA2Hwf\nshort\n-----END EC PRIVATE KEY----- after"
    assert redact_text(f"before {pem}") == "before [redacted] after"
    assert redact_text(pem[:60]) == "[redacted]"


def test_long_text_is_cut() -> None:
    """A provider's body of megabytes does not become a line of megabytes."""
    assert len(redact_text("word " * 100_000)) < 40_000


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=20,
    )
)
def test_no_value_can_break_a_line(value: object) -> None:
    """Whatever is logged, what comes out is JSON, one line, and no exception reaches the caller."""
    stream = io.BytesIO()
    writer = configure_logging("test", level="debug", stream=stream, is_final=False)
    structlog.get_logger().info("event", value=value)
    writer.flush()
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    assert stream.getvalue().count(b"\n") == 1
    json.loads(stream.getvalue())


def _core(canary: str) -> bytes:
    """Return the part of a canary that would be of use to a thief."""
    return canary.removeprefix("Bearer ")[-16:].encode()

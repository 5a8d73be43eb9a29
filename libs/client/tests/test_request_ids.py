"""A job has one request id, whoever derives it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byok_client.request_ids import new_request_id, request_id_for
from servicekit.clock import SystemClock
from servicekit.ids import check_request_id, uuid7_time

VECTORS = Path(__file__).resolve().parents[3] / "protos" / "vectors" / "request_id.json"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NAMES = st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable())


def test_the_published_vectors_are_what_this_client_derives() -> None:
    """Another language that meets the vectors meets this client."""
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    assert len(vectors) >= 5
    for each in vectors:
        at = EPOCH + timedelta(milliseconds=each["milliseconds"])
        assert request_id_for(each["queue"], each["job_id"], at) == each["request_id"]


@given(queue=NAMES, job=NAMES, milliseconds=st.integers(0, 2**45))
def test_an_id_carries_its_jobs_time_and_is_the_same_each_time(queue: str, job: str, milliseconds: int) -> None:
    """Two deliveries, in any zone, name one operation."""
    at = EPOCH + timedelta(milliseconds=milliseconds)
    first = request_id_for(queue, job, at)
    assert first == request_id_for(queue, job, at.astimezone(tz=None))
    assert uuid7_time(first) == at


@given(first=st.tuples(NAMES, NAMES), second=st.tuples(NAMES, NAMES))
def test_different_jobs_have_different_ids(first: tuple[str, str], second: tuple[str, str]) -> None:
    """Also when their names read the same once joined."""
    at = EPOCH + timedelta(days=20_000)
    assert (request_id_for(*first, at) == request_id_for(*second, at)) == (first == second)


@pytest.mark.parametrize(
    ("queue", "job", "at"),
    [("", "1", EPOCH), ("q", "", EPOCH), ("q", "1", datetime(2026, 1, 1)), ("q", "1", EPOCH - timedelta(days=1))],  # noqa: DTZ001 (that is the case)
)
def test_a_job_that_has_no_identity_is_refused(queue: str, job: str, at: datetime) -> None:
    """An id that other jobs would share must not be made."""
    with pytest.raises(ValueError, match=r"queue|job_timestamp"):
        request_id_for(queue, job, at)


def test_a_made_id_is_accepted_by_the_services() -> None:
    """What the client mints passes the check that every service makes."""
    check_request_id(new_request_id(), SystemClock().now() + timedelta(seconds=1))

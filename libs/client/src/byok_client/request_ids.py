"""Request ids: made for a call, or derived for a job, so that a job delivered twice is paid once.

A derived id is a UUIDv7 of the job's own timestamp, whose other bits come from SHA-256 over a label, the queue's name
and the job's id (`servicekit.ids.derived_uuid7` draws the layout). `protos/vectors/request_id.json` holds vectors for
other languages.
"""

from datetime import UTC, datetime
from typing import Final

from servicekit.clock import SystemClock
from servicekit.ids import derived_uuid7, new_uuid7

_LABEL: Final = b"byok.request_id.job.v1"


def new_request_id() -> str:
    """Return an id for a call that is made now, once."""
    return new_uuid7(SystemClock().now())


def request_id_for(queue: str, job_id: str, job_timestamp: datetime) -> str:
    """Return the id of a queue's job, the same for every delivery of it.

    Args:
        queue: The queue's name.
        job_id: The job's id in it.
        job_timestamp: When the job was made, as the queue keeps it; counted in milliseconds. Work that was held longer
            than 35 days needs a new id, with `supersedes_request_id`.

    Raises:
        ValueError: A name is empty, or the timestamp has no time zone or lies before 1970.
    """
    if not queue or not job_id:
        message = "queue and job_id must not be empty: jobs without them would share an id"
        raise ValueError(message)
    if job_timestamp.tzinfo is None:
        message = "job_timestamp needs a time zone: another process may run in another one"
        raise ValueError(message)
    if job_timestamp < datetime(1970, 1, 1, tzinfo=UTC):
        message = "job_timestamp lies before 1970"
        raise ValueError(message)
    return derived_uuid7(job_timestamp, _LABEL, queue.encode(), job_id.encode())

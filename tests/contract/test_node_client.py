"""A client in another language calls the suite, knowing the .proto files, its certificate and the published vectors."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from byok_client.request_ids import request_id_for
from servicekit.identity import TlsFiles
from testkit.stack.customer import POLICY, Customer, Suite, new_request_id
from testkit.stack.stack import Stack

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("node_client") / "client.cjs"
# Node.js itself comes from the lock, as a wheel.
NODE = Path(sys.executable).with_name("node")
PACKAGES = ROOT / ".cache" / "node_client" / "node_modules"
DEADLINE_MS = 20_000

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def node(job: dict[str, Any]) -> Any:
    """Give the Node client one job, and return its answer."""
    program = Path(sys.executable).with_name("node")
    assert PACKAGES.is_dir(), "the Node client's packages are installed by `make test`"
    process = await asyncio.create_subprocess_exec(
        str(program),
        str(CLIENT),
        env={"NODE_PATH": str(PACKAGES)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer, complaint = await process.communicate(json.dumps(job).encode())
    assert process.returncode == 0, complaint.decode()
    return json.loads(answer)


def milliseconds(since_epoch: int) -> datetime:
    """Return a job's timestamp."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=since_epoch)


@dataclass(frozen=True)
class Running:
    """A running suite, and a customer in it who has a key."""

    stack: Stack
    customer: Customer

    def job(self, tls: TlsFiles | None, *, request_id: str | None = None) -> dict[str, Any]:
        """Return an evaluation for the Node client to ask for."""
        own = {"certificate": str(tls.certificate), "private_key": str(tls.private_key)} if tls else {}
        context = {"request_id": request_id or new_request_id(), "agent_id": self.customer.agent_id, "actor": "node"}
        return {
            "call": "evaluate",
            "protos": str(ROOT / "protos"),
            "target": f"localhost:{self.stack.service('router').grpc_port}",
            "tls": {"ca": str(self.stack.ca.ca_file)} | own,
            "deadline_ms": DEADLINE_MS,
            "request": {"context": context, "content": "A recipe for bread.", "policy_text": POLICY},
        }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """The suite as real processes, with one owner, agent and validated key."""
    async with Stack(tmp_path_factory.mktemp("stack")) as stack, Suite(stack) as suite:
        customer = Customer(suite)
        await customer.set_up()
        yield Running(stack=stack, customer=customer)


async def test_a_node_client_has_content_judged_over_mutual_tls(running: Running) -> None:
    """The answer is whole: a verdict, what to do with the content, who paid, and the same again for the same id."""
    request_id = new_request_id()
    job = running.job(running.stack.client_tls("platform"), request_id=request_id)
    answer = await node(job)
    assert answer["code"] == "OK", answer
    assert answer["response"]["request_id"] == request_id
    assert answer["response"]["verdict"] == "GUARDRAIL_VERDICT_ALLOW"
    assert answer["response"]["disposition"] == "DISPOSITION_PROCEED"
    assert answer["response"]["receipt"]["payer"] == "PAYER_OWNER"
    repeated = await node(job)
    assert repeated["response"]["receipt"] == answer["response"]["receipt"] | {"is_replay": True}


async def test_a_node_client_of_another_role_is_refused(running: Running) -> None:
    """A certificate of the suite opens only what its role may call."""
    answer = await node(running.job(running.stack.client_tls("metering")))
    assert answer["code"] == "PERMISSION_DENIED"


async def test_a_node_client_without_a_certificate_gets_no_connection(running: Running) -> None:
    """The handshake fails: no call is ever seen."""
    answer = await node(running.job(None))
    assert answer["code"] == "UNAVAILABLE"


async def test_a_node_client_derives_the_request_ids_of_the_published_vectors() -> None:
    """A job has one request id, whatever language its worker is written in."""
    vectors = json.loads((ROOT / "protos" / "vectors" / "request_id.json").read_text(encoding="utf-8"))
    assert vectors
    derived = await node({"call": "derive", "jobs": vectors})
    assert derived == [vector["request_id"] for vector in vectors]
    by_python = [request_id_for(each["queue"], each["job_id"], milliseconds(each["milliseconds"])) for each in vectors]
    assert derived == by_python

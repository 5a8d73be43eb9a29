"""The simulator as a process, faithful and fast."""

import json
import socket
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from testkit.pki import ThrowawayCa
from testkit.simulator.client import SimulatorControl
from testkit.simulator.process import SimulatorProcess
from testkit.simulator.vendors import make_key

_SCHEMA = {"type": "object", "properties": {"verdict": {"enum": ["allow", "block"]}}, "required": ["verdict"]}


@pytest.mark.parametrize("is_fast", [False, True])
async def test_a_process_answers_over_https_and_counts(
    tmp_path: Path,
    throwaway_ca: ThrowawayCa,
    is_fast: bool,  # noqa: FBT001  # A table of cases.
) -> None:
    """Both kinds answer a structured request; their control endpoint knows the sums; stopping ends the process."""
    simulator = SimulatorProcess(tmp_path, tls=throwaway_ca.issue("provider"), is_fast=is_fast)
    context = ssl.create_default_context(cafile=str(throwaway_ca.ca_file))
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "fine"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "v", "schema": _SCHEMA}},
    }
    headers = {"authorization": f"Bearer {make_key('openai', 'process')}"}
    answer: dict[str, Any] = {}
    with simulator as addresses:
        url = f"{addresses.base_url('openai')}/chat/completions"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
            for _ in range(3):
                async with session.post(url, json=body, headers=headers) as response:
                    assert response.status == 200
                    answer = await response.json()
            async with session.post(f"{addresses.base_url('openai')}/nothing", json={}) as response:
                assert response.status == 404
        async with SimulatorControl(addresses) as control:
            totals = await control.totals()
        pid = simulator.process.pid
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"verdict": "allow"}
    assert totals.billed_calls == 3
    assert totals.output_tokens == 3 * answer["usage"]["completion_tokens"]
    assert not psutil.pid_exists(pid)


def test_a_later_process_takes_the_same_ports_unless_somebody_else_has(tmp_path: Path) -> None:
    """Keys name the simulator's port, so it keeps it; a port that is taken does not keep it from starting."""
    with SimulatorProcess(tmp_path) as addresses:
        first = addresses
    with SimulatorProcess(tmp_path) as addresses:
        assert addresses == first
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", first.http_port))
        squatter.listen()
        with SimulatorProcess(tmp_path) as addresses:
            assert addresses.http_port != first.http_port

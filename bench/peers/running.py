"""Peers as running processes: one process each, stateless, nothing switched on that its maker does not switch on.

Logging is set to errors, as production guides of both say; telemetry and look-ups outside the machine are off.
"""

import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.canned import IN_ANSWER, MODEL, PROVIDER_REQUEST
from bench.companions import Upstream
from bench.errors import BenchError
from bench.jobs import HttpJob
from bench.peers.pins import LITELLM_PROGRAM, LITELLM_VERSION, PORTKEY_PROGRAM, PORTKEY_VERSION
from testkit.errors import TestkitError
from testkit.ports import free_port
from testkit.processes import ChildProcess, Command

_START_SECONDS = 120
_SECRET = "sk-bench-peer-0123456789abcdef0123456789abcdef"  # noqa: S105  # Guards nothing: loopback, and a canned provider.


@dataclass(frozen=True)
class Peer:
    """A peer that takes requests."""

    name: str
    version: str
    pid: int
    job: HttpJob


def installed() -> list[str]:
    """Name the peers that can be run."""
    programs = {"litellm": LITELLM_PROGRAM, "portkey": PORTKEY_PROGRAM}
    return [name for name, program in programs.items() if program.exists()]


@asynccontextmanager
async def open_peer(name: str, *, upstream: Upstream, folder: Path) -> AsyncIterator[Peer]:
    """Start a peer in front of the provider, in a folder that is there; it is stopped at the end.

    Raises:
        BenchError: it does not start.
    """
    port = free_port()
    command, peer_job = _litellm(port, upstream, folder) if name == "litellm" else _portkey(port, upstream, folder)
    process = ChildProcess(command)
    process.start()
    try:
        await process.wait_until_async(lambda: _listens(port), timeout_seconds=_START_SECONDS)
        version = LITELLM_VERSION if name == "litellm" else PORTKEY_VERSION
        yield Peer(name=name, version=version, pid=process.pid, job=peer_job)
    except TestkitError as error:
        raise BenchError(str(error)) from error
    finally:
        process.stop(grace_seconds=5)


def _litellm(port: int, upstream: Upstream, folder: Path) -> tuple[Command, HttpJob]:
    config = folder / "litellm.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "model_list": [
                    {
                        "model_name": MODEL,
                        "litellm_params": {
                            "model": f"openai/{MODEL}",
                            "api_base": upstream.base_url,
                            "api_key": _SECRET,
                        },
                    }
                ],
                "litellm_settings": {"telemetry": False, "num_retries": 0, "ssl_verify": str(upstream.ca)},
                "router_settings": {"num_retries": 0},
                # It refuses to start without one; checking it is a comparison of strings.
                "general_settings": {"master_key": _SECRET},
            }
        )
    )
    arguments = [str(LITELLM_PROGRAM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        "SSL_CERT_FILE": str(upstream.ca),
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
    }
    job = _job(port, {})
    return _command([*arguments, "--num_workers", "1", "--telemetry", "False"], environment, folder), job


def _portkey(port: int, upstream: Upstream, folder: Path) -> tuple[Command, HttpJob]:
    loopback = Path(__file__).with_name("loopback.cjs")
    arguments = ["node", "--require", str(loopback), str(PORTKEY_PROGRAM), f"--port={port}", "--headless"]
    environment = {"NODE_ENV": "production", "NODE_EXTRA_CA_CERTS": str(upstream.ca)}
    headers = {
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": upstream.base_url,
    }
    return _command(arguments, environment, folder), _job(port, headers)


def _command(arguments: list[str], environment: Mapping[str, str], folder: Path) -> Command:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return Command(
        arguments=arguments, log_file=folder / "peer.log", environment={**kept, **environment}, directory=folder
    )


def _job(port: int, headers: dict[str, str]) -> HttpJob:
    return HttpJob(
        port=port,
        path="/v1/chat/completions",
        headers={"Authorization": f"Bearer {_SECRET}", **headers},
        body=PROVIDER_REQUEST,
        must_contain=IN_ANSWER,
    )


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.2):
            return True
    except OSError:
        return False

"""Whatever happens, an owner's secret is in no log, metric, trace, exception, Postgres page, Redis dump or audit entry.

The secret is a canary: it goes through success, a provider that says it back, every kind of broken answer, and faults
of our own that nobody foresaw, all with debug logging on and every call traced. Then everything that the suite has
written anywhere is searched for it, in any encoding.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path

import aiohttp
import asyncpg
import grpc
import pytest

from byok.keyvault.v1 import key_service_pb2, provider_key_pb2
from servicekit.clock import SystemClock
from servicekit.wire import error_from_rpc
from testkit.canary import Canary
from testkit.otlp import TraceCollector
from testkit.simulator.client import SimulatorControl
from testkit.simulator.faults import FaultKind
from testkit.simulator.vendors import make_key
from testkit.stack.customer import Customer, Suite, new_request_id
from testkit.stack.stack import Stack, StackOptions
from testkit.waiting import eventually

_PROVIDERS = ("openai", "anthropic", "ollama")
_FAULTS = (
    *((FaultKind.ECHO_KEY, {"status": status}) for status in (200, 400, 401, 403, 429, 500)),
    (FaultKind.BAD_KEY, {}),
    (FaultKind.SERVER_ERROR, {}),
    (FaultKind.MALFORMED_JSON, {}),
    (FaultKind.TRUNCATED_BODY, {}),
    (FaultKind.WRONG_CONTENT_TYPE, {}),
    (FaultKind.RESET_AFTER_READ, {}),
    (FaultKind.REDIRECT, {}),
    (FaultKind.OFF_SCHEMA, {}),
    (FaultKind.ODD_SHAPE, {}),
)


@pytest.fixture
async def traces() -> AsyncIterator[TraceCollector]:
    """Collect every trace."""
    async with TraceCollector() as collector:
        yield collector


@pytest.fixture
async def stack(tmp_path: Path, traces: TraceCollector) -> AsyncIterator[Stack]:
    """Run a stack that says all it can."""
    environment = {
        f"BYOK_{service}_{name}": value
        for service in ("KEYVAULT", "METERING", "ROUTER")
        for name, value in {
            "TELEMETRY__OTLP_ENDPOINT": traces.endpoint,
            "TELEMETRY__TRACE_RATIO": "1",
            "SERVER__LOG_SUCCESSES": "true",
        }.items()
    }
    options = StackOptions(log_level="debug", is_durable=False, is_kept=False, environment=environment)
    async with Stack(tmp_path, options=options) as running:
        yield running
        # Their stores are gone: they would wait in vain for their last settlements to become durable.
        for service in running.services:
            service.kill9()


class Said:
    """Everything that callers were told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def listen(self, call: object) -> None:
        """Await a call, and keep what it says, whether it succeeds or fails."""
        try:
            self.texts.append(repr(await call))  # type: ignore[misc]  # Calls of many types.
        except grpc.aio.AioRpcError as error:
            typed = error_from_rpc(error)
            details = "".join(repr(each.value) for each in typed.details)
            self.texts.append(f"{error!r} {typed!r} {typed.metadata} {error.debug_error_string()} {details}")


@pytest.mark.timeout(300)
async def test_the_secret_is_nowhere_whatever_happens(stack: Stack, traces: TraceCollector) -> None:
    """Success, echo, breakage and our own faults; then a search of everything written."""
    said = Said()
    started = SystemClock().now()
    canaries: list[Canary] = []
    async with Suite(stack) as suite, SimulatorControl(stack.simulator) as control:
        secrets = {
            provider: make_key("openai" if provider == "ollama" else provider, f"canary-{provider}")
            for provider in _PROVIDERS
        }
        canaries.extend(Canary(secret) for secret in secrets.values())
        customers = {name: Customer(suite) for name in secrets}
        await asyncio.gather(
            *(_use(customers[name], control, said, provider=name, secret=each) for name, each in secrets.items())
        )
        canaries.append(await _break_the_stores(stack, suite, said))
        metrics = await _metrics(stack)
    await eventually(_count(traces), bool)
    written = await _written(stack, started)
    found = [
        sighting
        for canary in canaries
        for sighting in (
            *canary.sightings_in_files(written),
            *canary.sightings(metrics.encode(), where="metrics"),
            *canary.sightings("\n".join(said.texts).encode(), where="answers"),
            *canary.sightings(b"".join(traces.exports), where="traces"),
        )
    ]
    assert found == []
    _check_that_the_search_looked_at_something(written, metrics, said, traces)
    _check_that_it_would_have_been_seen(written, customers["openai"])


async def _use(customer: Customer, control: SimulatorControl, said: Said, *, provider: str, secret: str) -> None:
    """Live an owner's life with the secret, through every way in which its provider can misbehave."""
    await customer.register()
    key = await customer.add_key(provider, secret=secret)
    said.texts.append(repr(key))
    await said.listen(customer.validate(key.key_id))
    await said.listen(customer.evaluate())
    for fault, fields in _FAULTS:
        rule = await control.add_fault(fault, vendor=provider, times=4, **fields)
        await said.listen(customer.evaluate(timeout_seconds=5))
        await said.listen(customer.validate(key.key_id))
        await control.remove_fault(rule)
        # What the fault did to the key's state is mended, so that the next fault meets a working key.
        await said.listen(customer.validate(key.key_id))
    await said.listen(customer.add_key("anthropic" if provider != "anthropic" else "groq", secret=secret, base_url=""))
    await said.listen(customer.add_key(provider, secret=f" {secret}\n"))
    await said.listen(customer.add_key("openai_compatible", secret=secret, base_url=f"https://x:{secret}@host/v1"))
    await said.listen(customer.revoke(key.key_id))


async def _break_the_stores(stack: Stack, suite: Suite, said: Said) -> Canary:
    """Take KeyVault's and Metering's tables away, so that they fail in ways that nobody wrote code for."""
    secret = make_key("openai", "canary-unforeseen")
    customer = Customer(suite)
    await customer.set_up("openai", secret=secret)
    for dsn in (stack.keyvault_dsn, stack.metering_dsn):
        connection = await asyncpg.connect(dsn)
        schemas = await connection.fetch(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        for row in schemas:
            await connection.execute(
                f'ALTER TABLE "{row["schemaname"]}"."{row["tablename"]}" RENAME TO "gone_{row["tablename"]}"'
            )
        await connection.close()
    request = key_service_pb2.CreateKeyRequest(
        request_id=new_request_id(),
        acting_for=customer.principal,
        actor="testkit",
        scope=provider_key_pb2.KEY_SCOPE_OWNER,
        provider="openai",
        base_url=stack.simulator.base_url("openai"),
        plaintext=secret.encode(),
    )
    await said.listen(suite.keys.CreateKey(request))
    await said.listen(customer.evaluate(timeout_seconds=3))
    stack.redis.command("FLUSHALL")
    await said.listen(customer.evaluate(timeout_seconds=3))
    return Canary(secret)


async def _metrics(stack: Stack) -> str:
    texts = []
    async with aiohttp.ClientSession() as session:
        for service in stack.services:
            async with session.get(f"http://127.0.0.1:{service.admin_port}/metrics") as response:
                texts.append(await response.text())
    return "\n".join(texts)


async def _written(stack: Stack, since: datetime) -> list[Path]:
    """Bring what the stores hold to disk, and return every file that the suite or its stores wrote meanwhile."""
    connection = await asyncpg.connect(stack.keyvault_dsn)
    await connection.execute("CHECKPOINT")
    await connection.close()
    stack.redis.command("SAVE")
    stores = [
        path
        for directory in (stack.postgres.data_dir, stack.redis.data_dir)
        for path in directory.rglob("*")
        if path.is_file() and path.stat().st_mtime >= since.timestamp()
    ]
    return [*stack.log_files(), stack.postgres.log_file, *stores]


def _count(traces: TraceCollector) -> Callable[[], Awaitable[int]]:
    async def count() -> int:
        return len(traces.exports)

    return count


def _check_that_the_search_looked_at_something(
    written: list[Path], metrics: str, said: Said, traces: TraceCollector
) -> None:
    """A search of nothing finds nothing: every place must hold what it is known to hold."""
    logs = b"".join(path.read_bytes() for path in written if path.suffix == ".log")
    pages = [path for path in written if "/base/" in str(path)]
    assert all(service.encode() in logs for service in ("keyvault", "metering", "router"))
    assert b"debug" in logs
    assert len(pages) > 20
    assert any(path.suffix == ".rdb" for path in written)
    assert "grpc" in metrics
    assert len(said.texts) > 3 * len(_FAULTS)
    assert sum(map(len, traces.exports)) > 10_000


def _check_that_it_would_have_been_seen(written: list[Path], customer: Customer) -> None:
    """What the stores do hold in clear, the owner's name, is found in the very files that were searched."""
    holders = [path for path in written if customer.owner_id.encode() in path.read_bytes()]
    assert any("/base/" in str(path) for path in holders)
    assert any("pg_wal" in str(path) for path in holders)
    assert any(path.suffix in (".aof", ".rdb") for path in holders)
    assert any(path.name.startswith("keyvault") and path.suffix == ".log" for path in written)

"""WatchAuthority over real gRPC: changes of every replica, in order, and the bound of a revocation."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

import grpc
import pytest
from pydantic import SecretStr

from byok.keyvault.v1 import key_service_pb2, lease_service_pb2
from keyvault.settings import PostgresSettings, RevocationSettings
from servicekit.clock import SystemClock
from services.keyvault.tests.integration.vault import (
    agent_item,
    create_request,
    name,
    new_id,
    owner,
    revoke_request,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from services.keyvault.tests.integration.vault import Vault

Request = lease_service_pb2.WatchAuthorityRequest
Response = lease_service_pb2.WatchAuthorityResponse
CLOCK = SystemClock()


@dataclass
class Watching:
    """One watch stream of a Router process."""

    holder: str = field(default_factory=new_id)
    acknowledges: bool = True
    outgoing: asyncio.Queue[Request] = field(default_factory=asyncio.Queue)
    heard: list[lease_service_pb2.AuthorityChange] = field(default_factory=list)
    echoes: list[lease_service_pb2.WatchEcho] = field(default_factory=list)
    ready: asyncio.Future[lease_service_pb2.WatchReady] | None = None
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    def ping(self) -> None:
        """Ask for an echo."""
        ping = lease_service_pb2.WatchPing(monotonic_ns=int(CLOCK.monotonic() * 1e9))
        self.outgoing.put_nowait(Request(ping=ping))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until what was heard makes `holds` true."""
        async with asyncio.timeout(10), self.news:
            await self.news.wait_for(holds)

    async def take(self, response: Response) -> None:
        """Take one message, acknowledging changes."""
        kind = response.WhichOneof("message")
        async with self.news:
            if kind == "change":
                self.heard.append(response.change)
                if self.acknowledges:
                    ack = lease_service_pb2.WatchAck(authority_index=response.change.authority_index)
                    self.outgoing.put_nowait(Request(ack=ack))
            elif kind == "echo":
                self.echoes.append(response.echo)
            elif kind == "ready" and self.ready is not None:
                self.ready.set_result(response.ready)
            self.news.notify_all()


@contextlib.asynccontextmanager
async def watching(vault: Vault, *, resume_index: int = 0, acknowledges: bool = True) -> AsyncIterator[Watching]:
    """Watch at a replica while the context lasts."""
    watch = Watching(acknowledges=acknowledges)
    watch.ready = asyncio.get_running_loop().create_future()
    hello = lease_service_pb2.WatchHello(holder=watch.holder, resume_index=resume_index)
    watch.outgoing.put_nowait(Request(hello=hello))

    async def requests() -> AsyncIterator[Request]:
        while True:
            yield await watch.outgoing.get()

    stream = (await vault.leases()).WatchAuthority(requests())

    async def read() -> None:
        async for response in stream:
            await watch.take(response)

    reading = asyncio.create_task(read())
    try:
        await asyncio.wait_for(asyncio.shield(watch.ready), 10)
        yield watch
    finally:
        stream.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await reading


async def test_every_change_is_told_with_what_it_touches(vault: Vault) -> None:
    """Binding, creation, validation, revocation: each names its agent, owner or key, in the order of the log."""
    async with watching(vault) as watch:
        bound = await vault.bind()
        key = await vault.working_key()
        await (await vault.keys()).RevokeKey(revoke_request(key.key_id))
        await watch.until(lambda: len(watch.heard) == 4)
    kinds = lease_service_pb2
    assert [change.kind for change in watch.heard] == [
        kinds.AUTHORITY_CHANGE_KIND_AGENT_BOUND,
        kinds.AUTHORITY_CHANGE_KIND_KEY_ADDED,
        kinds.AUTHORITY_CHANGE_KIND_KEY_STATE_CHANGED,
        kinds.AUTHORITY_CHANGE_KIND_KEY_REVOKED,
    ]
    assert watch.heard[0].agent_id == "agent-1"
    assert watch.heard[0].authority_index == bound.binding.authority_index
    assert {change.key_id for change in watch.heard[1:]} == {key.key_id}
    assert {change.owner_id for change in watch.heard[1:]} == {"owner-1"}
    indexes = [change.authority_index for change in watch.heard]
    assert indexes == sorted(set(indexes))


async def test_an_echo_is_sent_ahead_of_nothing_that_was_committed(vault: Vault) -> None:
    """What was committed before the ping was sent is heard before its echo, round after round."""
    async with watching(vault) as watch:
        for round_number in range(1, 6):
            await vault.bind(f"agent-{round_number}")
            watch.ping()
            await watch.until(lambda wanted=round_number: len(watch.echoes) == wanted)  # type: ignore[misc]  # defaults bind
            assert len(watch.heard) == round_number
            assert watch.echoes[-1].authority_index >= watch.heard[-1].authority_index


async def test_a_watch_resumes_by_index(vault: Vault) -> None:
    """What was missed is told, whatever leases lie in between, and nothing twice."""
    async with watching(vault) as first:
        await vault.bind()
        await first.until(lambda: len(first.heard) == 1)
    await (await vault.router()).acquire(agent_item())
    key = await vault.working_key()
    async with watching(vault, resume_index=first.heard[0].authority_index) as second:
        await second.until(lambda: len(second.heard) == 2)
        assert {change.key_id for change in second.heard} == {key.key_id}


async def test_no_watcher_skips_a_change(start_vault: Callable[..., Awaitable[Vault]]) -> None:
    """Writers at two replicas race; watchers at both hear every index exactly once, in order."""
    vaults = [await start_vault(), await start_vault()]
    async with watching(vaults[0]) as first, watching(vaults[1]) as second:

        async def write(vault: Vault, count: int) -> None:
            for _ in range(count):
                await vault.bind(name("agent"))

        await asyncio.gather(*(write(vault, 15) for vault in vaults for _ in range(3)))
        for watch in (first, second):
            await watch.until(lambda watch=watch: len(watch.heard) >= 90)  # type: ignore[misc]  # defaults bind
            assert watch.ready is not None
            head = watch.ready.result().authority_index
            assert [change.authority_index for change in watch.heard] == list(range(head + 1, head + 91))


async def test_a_revocation_answers_when_watchers_of_all_replicas_acknowledged(
    start_vault: Callable[..., Awaitable[Vault]],
) -> None:
    """Revoked at one replica, acknowledged at the other: the answer comes at once and says so."""
    bound = RevocationSettings(partition_bound=timedelta(seconds=30))
    here, there = await start_vault(revocation=bound), await start_vault(revocation=bound)
    key = await here.working_key()
    async with watching(there) as watch:
        watch.ping()
        await watch.until(lambda: len(watch.echoes) == 1)
        started = CLOCK.monotonic()
        answer = await (await here.keys()).RevokeKey(revoke_request(key.key_id))
        elapsed = CLOCK.monotonic() - started
        assert [change.key_id for change in watch.heard] == [key.key_id]
        assert watch.heard[-1].authority_index == answer.authority_index
    assert (answer.acknowledged_watchers, answer.expired_watchers) == (1, 0)
    assert elapsed < 10


async def test_a_revocation_waits_for_a_silent_watcher_until_its_bound(
    start_vault: Callable[..., Awaitable[Vault]],
) -> None:
    """A Router that hears and does not act, pinging all the while, is waited for no longer than the bound."""
    vault = await start_vault(revocation=RevocationSettings(partition_bound=timedelta(seconds=1)))
    key = await vault.working_key()
    async with watching(vault, acknowledges=False) as watch:
        watch.ping()
        await watch.until(lambda: len(watch.echoes) == 1)
        started = CLOCK.monotonic()
        revoking = asyncio.create_task(_revoke(vault, key.key_id))
        while not revoking.done():
            watch.ping()
            await asyncio.wait({revoking}, timeout=0.05)
        elapsed = CLOCK.monotonic() - started
    answer = revoking.result()
    # The round that reads the revocation may still echo the pings that came before it; after that there is no echo.
    assert len([echo for echo in watch.echoes if echo.authority_index >= answer.authority_index]) <= 1
    assert (answer.acknowledged_watchers, answer.expired_watchers) == (0, 1)
    assert 0.5 < elapsed < 10


async def test_a_revocation_waits_for_nobody_who_may_use_nothing(vault: Vault) -> None:
    """A watcher that never got an echo can use no cached lease, and is not waited for."""
    key = await vault.working_key()
    async with watching(vault, acknowledges=False) as watch:
        answer = await _revoke(vault, key.key_id)
        await watch.until(lambda: len(watch.heard) == 1)
    assert (answer.acknowledged_watchers, answer.expired_watchers) == (0, 0)


async def test_changes_come_by_polling_when_nothing_is_notified(
    start_vault: Callable[..., Awaitable[Vault]], migrated_dsn: str, postgres_server: str
) -> None:
    """A session that LISTENs elsewhere hears nothing, as behind a pooler; polling finds every change all the same."""
    postgres = PostgresSettings(dsn=SecretStr(migrated_dsn), session_dsn=SecretStr(postgres_server), pool_max=4)
    vault = await start_vault(postgres=postgres)
    async with watching(vault) as watch:
        await (await vault.keys()).CreateKey(create_request(acting_for=owner(name("owner"))))
        await watch.until(lambda: len(watch.heard) == 1)


@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE audit_entries SET leaf = 'nonsense' WHERE kind = 4",
        # Another key's revocation, which would leave the right one's leases alone.
        "UPDATE audit_entries SET leaf = (SELECT leaf FROM audit_entries WHERE kind = 1 LIMIT 1) WHERE kind = 4",
        "UPDATE audit_entries SET leaf = set_byte(leaf, 70, get_byte(leaf, 70) # 255) WHERE kind = 4",
        "UPDATE audit_entries SET subject = 'key/another' WHERE kind = 4",
    ],
    ids=["nonsense", "another entry", "one byte", "subject"],
)
async def test_a_revocation_that_was_edited_ends_everything(vault: Vault, attack: str) -> None:
    """Who may write to the database cannot hide whose lease has ended: then all have, and the watch goes on behind."""
    bound = await vault.bind()
    key = await vault.working_key()
    answer = await _revoke(vault, key.key_id)
    await vault.forge(attack)
    async with watching(vault, resume_index=bound.binding.authority_index) as watch:
        await watch.until(lambda: bool(watch.heard) and watch.heard[-1].authority_index == answer.authority_index)
        untold = watch.heard[-1]
        assert (untold.key_id, untold.agent_id, untold.owner_id, untold.platform) == ("", "", "", False)
        assert untold.kind == lease_service_pb2.AUTHORITY_CHANGE_KIND_UNSPECIFIED
        await vault.bind("agent-2")
        watch.ping()
        await watch.until(lambda: len(watch.echoes) == 1)
        assert watch.heard[-1].agent_id == "agent-2"


async def test_a_watch_that_resumes_where_nothing_is_kept_starts_anew(vault: Vault) -> None:
    """What was archived since cannot be told: all that was granted before the head ends, and the watch goes on."""
    bound = await vault.bind()
    key = await vault.working_key()
    answer = await _revoke(vault, key.key_id)
    await vault.forge("DELETE FROM audit_entries WHERE audit_index <= $1", answer.authority_index)
    head = (await vault.bind("agent-2")).binding.authority_index
    async with watching(vault, resume_index=bound.binding.authority_index) as watch:
        await watch.until(lambda: len(watch.heard) == 1)
        assert (watch.heard[0].authority_index, watch.heard[0].agent_id) == (head, "")
    async with watching(vault, resume_index=answer.authority_index) as watch:
        await watch.until(lambda: len(watch.heard) == 1)
        assert watch.heard[0].agent_id == "agent-2"


async def _revoke(vault: Vault, key_id: str) -> key_service_pb2.RevokeKeyResponse:
    return await (await vault.keys()).RevokeKey(revoke_request(key_id))  # type: ignore[no-any-return]  # a stub's

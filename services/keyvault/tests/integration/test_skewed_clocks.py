"""The clocks of replicas disagree, and the bound of a revocation is what it was.

Routers count on their own monotonic clock, from the moment of a ping; what replicas must agree on, they take from the
database. Here each replica's wall clock is wrong by minutes, a hundred times the bound.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import pytest
from typing_extensions import override

import keyvault.wiring.base
from keyvault.settings import RevocationSettings
from servicekit.clock import SystemClock
from services.keyvault.tests.integration.test_watching import CLOCK, watching
from services.keyvault.tests.integration.vault import agent_item, revoke_request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from services.keyvault.tests.integration.vault import Vault

BOUND: Final = timedelta(seconds=2)
# As far as request ids, which carry the time of their caller, may be off.
SKEW: Final = timedelta(minutes=4)


@pytest.fixture
async def vaults(start_vault: Callable[..., Awaitable[Vault]], monkeypatch: pytest.MonkeyPatch) -> tuple[Vault, Vault]:
    """Return a replica whose clock is ahead, and one whose clock is behind."""
    started = []
    for skew in (SKEW, -SKEW):

        class Skewed(SystemClock):
            _skew = skew

            @override
            def now(self) -> datetime:
                return super().now() + self._skew

        monkeypatch.setattr(keyvault.wiring.base, "SystemClock", Skewed)
        started.append(await start_vault(revocation=RevocationSettings(partition_bound=BOUND)))
    return started[0], started[1]


@pytest.mark.parametrize("ahead_revokes", [True, False], ids=["by the one ahead", "by the one behind"])
async def test_a_revocation_is_acknowledged_as_ever(vaults: tuple[Vault, Vault], *, ahead_revokes: bool) -> None:
    """Revoked at one replica, watched at the other: it returns at once, and nothing is leased any more."""
    revoking, watched = vaults if ahead_revokes else vaults[::-1]
    await revoking.bind()
    key = await revoking.working_key()
    router = await watched.router()
    assert (await router.acquire(agent_item())).results[0].WhichOneof("result") == "lease"
    async with watching(watched) as watch:
        watch.ping()
        await watch.until(lambda: len(watch.echoes) == 1)
        started = CLOCK.monotonic()
        answer = await (await revoking.keys()).RevokeKey(revoke_request(key.key_id))
        assert CLOCK.monotonic() - started < BOUND.total_seconds()
        assert (answer.acknowledged_watchers, answer.expired_watchers) == (1, 0)
    assert (await router.acquire(agent_item())).results[0].WhichOneof("result") == "no_usable_key"


@pytest.mark.parametrize("ahead_revokes", [True, False], ids=["by the one ahead", "by the one behind"])
async def test_a_silent_watcher_is_waited_for_as_long_as_it_may_go_on(
    vaults: tuple[Vault, Vault], *, ahead_revokes: bool
) -> None:
    """Neither shorter, when the revoking clock is ahead of the watched one, nor longer, when it is behind."""
    revoking, watched = vaults if ahead_revokes else vaults[::-1]
    key = await revoking.working_key()
    async with watching(watched, acknowledges=False) as watch:
        watch.ping()
        sent = CLOCK.monotonic()
        await watch.until(lambda: len(watch.echoes) == 1)
        answer = await asyncio.wait_for(
            (await revoking.keys()).RevokeKey(revoke_request(key.key_id)), 5 * BOUND.total_seconds()
        )
        # The Router may use what it cached until its ping is as old as the bound, and not a call starts after that.
        assert CLOCK.monotonic() - sent >= BOUND.total_seconds()
    assert (answer.acknowledged_watchers, answer.expired_watchers) == (0, 1)

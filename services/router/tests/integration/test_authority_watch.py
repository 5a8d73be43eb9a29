"""The watch on authority over real gRPC: contact, resumption, and handing over from one stream to the next."""

import asyncio
from datetime import timedelta

import pytest
from google.protobuf.duration_pb2 import Duration

from byok.keyvault.v1 import lease_service_pb2 as pb
from router.domain.refusals import (
    LeaseEndedError,
)
from services.router.tests.integration.fake_keyvault import QUERY, opened, until


async def test_the_watch_proves_contact_and_acknowledges_changes() -> None:
    """An echo makes contact; a change is in force before it is acknowledged."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        change = pb.AuthorityChange(authority_index=9, key_id="key-1")
        bench.vault.say(pb.WatchAuthorityResponse(change=change))
        await until(lambda: bench.vault.acks == [9])
        assert bench.authority.index == 9


async def test_a_broken_watch_is_resumed_where_it_was() -> None:
    """Nothing between two streams is missed: the second one names the last index."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        bench.vault.say(pb.WatchAuthorityResponse(change=pb.AuthorityChange(authority_index=9, key_id="key-1")))
        await until(lambda: bench.authority.index == 9)
        bench.vault.say(None)
        await until(lambda: len(bench.vault.hellos) == 2)
        assert [hello.resume_index for hello in bench.vault.hellos] == [0, 9]


async def test_a_log_that_is_shorter_than_what_was_heard_starts_everything_anew() -> None:
    """Leases from before a restored backup end, and the watch begins at the new head."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        lease = await bench.client.acquire(QUERY)
        bench.vault.say(pb.WatchAuthorityResponse(change=pb.AuthorityChange(authority_index=900, key_id="other")))
        await until(lambda: bench.authority.index == 900)
        bench.authority.ensure(lease)
        bench.vault.head = 6
        bench.vault.say(None)
        await until(lambda: bench.authority.index == 5 and bench.authority.is_in_contact)
        assert [hello.resume_index for hello in bench.vault.hellos] == [0, 900, 0]
        with pytest.raises(LeaseEndedError):
            bench.authority.ensure(lease)


async def test_a_silent_watch_is_opened_anew() -> None:
    """A stream that says nothing is as good as broken."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        bench.vault.is_echoing = False
        await until(lambda: len(bench.vault.hellos) >= 2)


async def test_a_draining_watch_is_left_when_the_next_has_proved_its_contact() -> None:
    """Until then what it says counts; a KeyVault that does not echo on the next stream keeps the old one."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        bench.vault.echoing_max = 1
        bench.vault.say(pb.WatchAuthorityResponse(draining=pb.WatchDraining(ends_in=Duration(seconds=5))))
        await until(lambda: len(bench.vault.hellos) == 2)
        bench.vault.say(pb.WatchAuthorityResponse(change=pb.AuthorityChange(authority_index=12, key_id="k")), stream=0)
        await until(lambda: bench.authority.index == 12)
        assert bench.vault.open_watches == 2
        bench.vault.echoing_max = 2
        await until(lambda: bench.vault.open_watches == 1)
        bench.vault.say(pb.WatchAuthorityResponse(change=pb.AuthorityChange(authority_index=13, key_id="k")), stream=1)
        await until(lambda: bench.authority.index == 13)


async def test_contact_does_not_lapse_from_watch_to_watch() -> None:
    """Replaced again and again, with a bound that is hardly longer than a ping's way: contact at every moment."""
    async with opened(is_watching=True) as bench:
        bench.vault.bound = timedelta(milliseconds=500)
        await until(lambda: bench.authority.is_in_contact)
        lapses = []

        async def look() -> None:
            while True:
                if not bench.authority.is_in_contact:
                    lapses.append(bench.vault.open_watches)
                await asyncio.sleep(0.001)

        looking = asyncio.create_task(look())
        for replaced in range(1, 6):
            bench.vault.say(pb.WatchAuthorityResponse(draining=pb.WatchDraining(ends_in=Duration(seconds=5))))
            await until(lambda wanted=replaced: len(bench.vault.hellos) > wanted and bench.vault.open_watches == 1)  # type: ignore[misc]  # defaults bind
        looking.cancel()
        assert lapses == []


async def test_a_silent_watch_is_replaced_before_contact_lapses() -> None:
    """A replica that stands still: the next watch has proved its contact while the last echo still holds."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        bench.vault.deaf = {0}
        await until(lambda: len(bench.vault.hellos) == 2 and bench.vault.open_watches == 1)
        assert bench.authority.is_in_contact


async def test_a_replica_that_is_going_away_is_passed_over() -> None:
    """A watch that is refused as unavailable is begun again on the same connection, which leads to the next replica."""
    async with opened() as bench:
        bench.vault.refusals_left = 2
        watching = asyncio.create_task(bench.watch.run())
        await until(lambda: bench.authority.is_in_contact)
        assert bench.vault.refusals_left == 0
        assert bench.vault.connections == 1
        watching.cancel()
        await asyncio.wait({watching})


async def test_changes_are_acknowledged_together() -> None:
    """A burst of changes takes few acknowledgements: the newest stands for all before it."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        for index in range(1, 301):
            change = pb.AuthorityChange(authority_index=100 + index, key_id="k")
            bench.vault.say(pb.WatchAuthorityResponse(change=change))
        await until(lambda: 400 in bench.vault.acks)
        assert bench.vault.acks == sorted(set(bench.vault.acks))
        assert len(bench.vault.acks) < 100


@pytest.mark.parametrize("change", [pb.AuthorityChange(), pb.AuthorityChange(kind=77)], ids=["untold", "unknown"])  # type: ignore[arg-type]  # of a release to come
async def test_a_change_of_which_nothing_is_known_ends_everything(change: pb.AuthorityChange) -> None:
    """An entry that KeyVault can't read, or a kind of change of a newer release: all that was granted before ends."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        lease = await bench.client.acquire(QUERY)
        bench.authority.ensure(lease)
        change.authority_index = lease.authority_index + 1
        bench.vault.say(pb.WatchAuthorityResponse(change=change))
        await until(lambda: bench.vault.acks == [lease.authority_index + 1])
        with pytest.raises(LeaseEndedError):
            bench.authority.ensure(lease)


async def test_a_watch_that_begins_later_than_what_was_heard_ends_everything() -> None:
    """What lies between was told by nobody."""
    async with opened(is_watching=True) as bench:
        await until(lambda: bench.authority.is_in_contact)
        lease = await bench.client.acquire(QUERY)
        bench.authority.ensure(lease)
        bench.vault.start = 50
        bench.vault.say(None)
        await until(lambda: bench.authority.index == 50 and bench.authority.is_in_contact)
        with pytest.raises(LeaseEndedError):
            bench.authority.ensure(lease)

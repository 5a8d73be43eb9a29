"""What every provider of a root key must do. Each suite is run once per provider, in `test_root_keys`."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol

import pytest
from structlog.testing import capture_logs

from keyvault.adapters.root_keys.attempts import AttemptLimits, Attempts
from keyvault.domain.errors import RootKeyUnavailableError, RootKeyUnusableError
from servicekit.clock import SystemClock
from servicekit.secrets import Secret
from testkit.canary import Canary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyvault.ports import RootKey

# 32 bytes that are text, so that the search for secrets knows them in every form.
KEY: Final = "canary-wrapped-key-4a7d91e2-0c83"
DATA: Final = b"byok/test/associated-data"
ATTEMPTS: Final = 2
PATIENT: Final = AttemptLimits(timeout=timedelta(seconds=30))
LIMITS: Final = AttemptLimits(
    timeout=timedelta(milliseconds=700), attempts_max=ATTEMPTS, pause_min=timedelta(milliseconds=20)
)
# Both attempts, the pause, and a busy machine.
GIVES_UP_WITHIN: Final = timedelta(seconds=6)
FLIPS: Final = (0x01, 0x20, 0x80)


def attempts(limits: AttemptLimits = PATIENT) -> Attempts:
    """Return how a root key is asked in these tests: without haste, unless the test is about that."""
    return Attempts(limits, clock=SystemClock())


def secret() -> Secret:
    """Return the key that is wrapped."""
    return Secret(KEY)


def said_by(error: BaseException) -> str:
    """Return all that an error says, with everything that hangs on it."""
    said = ""
    following: BaseException | None = error
    while following is not None:
        said += f"{following!r} {getattr(following, 'facts', '')}"
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
    return said


class Kit(Protocol):
    """One provider under test."""

    provider: str

    async def open(self, name: str = "first") -> RootKey:
        """Return a root key; another name is another key of the same provider."""

    def secrets(self) -> Sequence[str]:
        """Return what is handed to the provider to log in with, and may be seen nowhere."""


class RemoteKit(Kit, Protocol):
    """A provider that can be away."""

    async def open_away(self) -> RootKey:
        """Return a root key that lives where nobody answers."""

    async def open_hanging(self) -> RootKey:
        """Return a root key that lives where whoever answers takes for ever."""

    async def open_refused(self) -> RootKey:
        """Return a root key whose provider does not let this service in."""


class RootKeyContract:
    """A root key opens what it wrapped, with the associated data that it was wrapped with, and nothing else."""

    async def test_a_key_comes_back_as_it_was(self, kit: Kit) -> None:
        """Another instance, as after a restart, opens it too; what is stored does not hold the key."""
        root = await kit.open()
        wrapped = await root.wrap(secret(), DATA)
        assert await root.unwrap(wrapped, DATA) == secret()
        assert await (await kit.open()).unwrap(wrapped, DATA) == secret()
        assert not Canary(KEY).sightings(wrapped, where="wrapped key")

    async def test_a_key_is_wrapped_anew_each_time(self, kit: Kit) -> None:
        """Wrapping one key twice shows nobody that it was one key."""
        root = await kit.open()
        assert await root.wrap(secret(), DATA) != await root.wrap(secret(), DATA)

    @pytest.mark.parametrize("other", [b"", b"byok/test/associated-dat", DATA + b"a", b"c" + DATA[1:], DATA + b"\x00"])
    async def test_other_associated_data_is_refused(self, kit: Kit, other: bytes) -> None:
        """A wrapped key does not change places."""
        root = await kit.open()
        wrapped = await root.wrap(secret(), DATA)
        with pytest.raises(RootKeyUnusableError):
            await root.unwrap(wrapped, other)

    async def test_every_changed_byte_is_refused(self, kit: Kit) -> None:
        """No byte of what is stored may be another."""
        root = await kit.open()
        wrapped = await root.wrap(secret(), DATA)
        for position in range(len(wrapped)):
            for flip in FLIPS:
                changed = bytearray(wrapped)
                changed[position] ^= flip
                with pytest.raises(RootKeyUnusableError):
                    await root.unwrap(bytes(changed), DATA)

    async def test_another_root_key_is_refused(self, kit: Kit) -> None:
        """A second key of the same provider opens nothing of the first."""
        wrapped = await (await kit.open()).wrap(secret(), DATA)
        other = await kit.open("second")
        with pytest.raises(RootKeyUnusableError):
            await other.unwrap(wrapped, DATA)

    async def test_what_is_cut_or_longer_is_refused(self, kit: Kit) -> None:
        """Every length but the right one is refused, the empty one and one beyond all bounds too."""
        root = await kit.open()
        wrapped = await root.wrap(secret(), DATA)
        cut = [wrapped[:length] for length in range(len(wrapped))] + [wrapped[1:]]
        longer = [wrapped + b"\x00", wrapped + b"\n", wrapped + b"A", b" " + wrapped, wrapped * 2, wrapped * 20_000]
        for bad in cut + longer:
            with pytest.raises(RootKeyUnusableError):
                await root.unwrap(bad, DATA)

    async def test_the_id_is_stable_and_tells_keys_apart(self, kit: Kit) -> None:
        """The id names the provider, is the same after a restart, and another for another key."""
        first, again, second = await kit.open(), await kit.open(), await kit.open("second")
        assert first.root_key_id == again.root_key_id != second.root_key_id
        assert first.root_key_id.startswith(f"{kit.provider}:")
        assert not any(each in first.root_key_id for each in kit.secrets())

    async def test_many_are_wrapped_and_unwrapped_at_once(self, kit: Kit) -> None:
        """A keyring has many versions, and all are asked for together; none gets the answer of another."""
        root = await kit.open()
        keys = [Secret(f"{number:032d}") for number in range(24)]
        wrapped = await asyncio.gather(*(root.wrap(key, b"%d" % number) for number, key in enumerate(keys)))
        unwrapped = await asyncio.gather(*(root.unwrap(each, b"%d" % number) for number, each in enumerate(wrapped)))
        assert unwrapped == keys

    async def test_nothing_secret_is_said(self, kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
        """Neither logs, debug lines of libraries among them, nor errors show a key or what it logs in with."""
        caplog.set_level(logging.DEBUG)
        said = ""
        with capture_logs() as logged:
            root = await kit.open()
            wrapped = await root.wrap(secret(), DATA)
            await root.unwrap(wrapped, DATA)
            for bad, data in ((wrapped[:-1], DATA), (wrapped[:-1] + b"0", DATA), (wrapped, b"other")):
                with pytest.raises(RootKeyUnusableError) as caught:
                    await root.unwrap(bad, data)
                said += said_by(caught.value)
        seen = (said + caplog.text + repr(caplog.records) + repr(logged) + repr(root)).encode()
        assert not Canary(KEY).sightings(seen, where="logs and errors")
        assert not [each for each in kit.secrets() if each.encode() in seen]


class RemoteRootKeyContract(RootKeyContract):
    """A root key that lives elsewhere may be away; that is told apart from a wrong key, in bounded time."""

    @pytest.mark.parametrize("how", ["open_away", "open_hanging", "open_refused"])
    async def test_away_is_told_in_bounded_time(self, remote_kit: RemoteKit, how: str) -> None:
        """Where nobody answers, or for ever, or with a no, the error says so, for many callers at once as for one."""
        root = await getattr(remote_kit, how)()
        started = SystemClock().monotonic()
        asked = await asyncio.gather(*(root.wrap(secret(), DATA) for _ in range(8)), return_exceptions=True)
        assert SystemClock().monotonic() - started < GIVES_UP_WITHIN.total_seconds()
        assert {type(each) for each in asked} == {RootKeyUnavailableError}
        for error in asked:
            assert isinstance(error, RootKeyUnavailableError)
            assert error.facts == {"root_key_id": root.root_key_id}

    @pytest.mark.parametrize("how", ["open_away", "open_hanging", "open_refused"])
    async def test_being_away_says_nothing_secret(
        self, remote_kit: RemoteKit, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What fails on the way shows no key either."""
        caplog.set_level(logging.DEBUG)
        with capture_logs() as logged:
            root = await getattr(remote_kit, how)()
            with pytest.raises(RootKeyUnavailableError) as caught:
                await root.wrap(secret(), DATA)
        seen = (said_by(caught.value) + caplog.text + repr(caplog.records) + repr(logged)).encode()
        assert not Canary(KEY).sightings(seen, where="logs and errors")
        assert not [each for each in remote_kit.secrets() if each.encode() in seen]

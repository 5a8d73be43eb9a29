"""How a root key is asked: bounded, again when that may help, and from files that hold what they should."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from keyvault.adapters.root_keys.attempts import AttemptLimits, Attempts, TryAgainError, run_off_loop
from keyvault.adapters.root_keys.secret_files import read_secret_file, read_secret_line
from keyvault.domain.errors import RootKeyUnavailableError, RootKeyUnusableError

if TYPE_CHECKING:
    from pathlib import Path

    from testkit.fake_clock import FakeClock


class Pauses:
    """A clock that notes how long it was to wait, and does not."""

    def __init__(self, clock: FakeClock) -> None:
        self.now = clock.now
        self.monotonic = clock.monotonic
        self.asked: list[float] = []

    async def sleep(self, delay: timedelta) -> None:
        self.asked.append(delay.total_seconds())


class Flaky:
    """An attempt that fails a few times."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.made = 0
        self._failures = failures
        self._error = error

    async def __call__(self) -> str:
        self.made += 1
        if self.made <= self._failures:
            raise self._error
        return "answer"


@pytest.fixture
def pauses(fake_clock: FakeClock) -> Pauses:
    """Return a clock that does not wait."""
    return Pauses(fake_clock)


async def test_what_may_pass_is_tried_again_after_growing_pauses(pauses: Pauses) -> None:
    """Each pause is drawn between half and all of twice the one before, up to the longest."""
    limits = AttemptLimits(attempts_max=6, pause_min=timedelta(seconds=1), pause_max=timedelta(seconds=4))
    flaky = Flaky(5, TryAgainError("no"))
    assert await Attempts(limits, clock=pauses).run(flaky, root_key_id="x") == "answer"
    assert len(pauses.asked) == 5
    for asked, longest in zip(pauses.asked, (1, 2, 4, 4, 4), strict=True):
        assert longest / 2 <= asked <= longest


async def test_it_gives_up_after_the_last_attempt(pauses: Pauses) -> None:
    """The error names the root key and the last reason, and nothing hangs on it."""
    flaky = Flaky(9, TryAgainError("the server answered 500"))
    with pytest.raises(RootKeyUnavailableError, match="answered 500") as caught:
        await Attempts(AttemptLimits(attempts_max=3), clock=pauses).run(flaky, root_key_id="vault-transit:x")
    assert flaky.made == 3
    assert len(pauses.asked) == 2
    assert caught.value.facts == {"root_key_id": "vault-transit:x"}


@pytest.mark.parametrize("error", [RootKeyUnusableError("wrong key"), RootKeyUnavailableError("not allowed")])
async def test_what_stays_is_not_tried_again(pauses: Pauses, error: Exception) -> None:
    """A wrong key stays wrong, and a refusal a refusal."""
    flaky = Flaky(9, error)
    with pytest.raises(type(error)):
        await Attempts(AttemptLimits(attempts_max=3), clock=pauses).run(flaky, root_key_id="x")
    assert flaky.made == 1
    assert pauses.asked == []


async def test_work_that_never_comes_back_holds_nothing_up() -> None:
    """Whoever asked can leave, the next work is done meanwhile, and the thread is no reason not to end."""
    release = threading.Event()
    stuck = asyncio.create_task(run_off_loop(release.wait))
    assert await run_off_loop(lambda: threading.current_thread().daemon)
    stuck.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stuck
    release.set()


async def test_what_work_raises_is_raised_where_it_was_asked_for() -> None:
    """An error in the thread is the caller's."""

    def fail() -> None:
        raise TryAgainError("from the thread")

    with pytest.raises(TryAgainError, match="from the thread"):
        await run_off_loop(fail)


@pytest.mark.parametrize("content", [b"", b" \n", b"x" * 20_000])
def test_a_secret_file_holds_a_secret(tmp_path: Path, content: bytes) -> None:
    """A file that is empty or too long is refused, and what it holds is not shown."""
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(0o400)
    with pytest.raises(RootKeyUnusableError, match="pin_file") as caught:
        read_secret_file(path, setting="root_key.pkcs11.pin_file")
    assert "xxx" not in str(caught.value)


@pytest.mark.parametrize("content", [b"two\nlines", b"\xff\xfe", b"bell\x07"])
def test_a_line_is_one_line_of_text(tmp_path: Path, content: bytes) -> None:
    """What would break a header or a login is refused before it is sent."""
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o400)
    with pytest.raises(RootKeyUnusableError, match="one line"):
        read_secret_line(path, setting="x")


def test_who_may_read_a_secret_file(tmp_path: Path) -> None:
    """A secret that everybody can read is refused; a token that Kubernetes mounts so is not."""
    path = tmp_path / "token"
    path.write_text(" canary-token\n")
    path.chmod(0o644)
    with pytest.raises(RootKeyUnusableError, match="chmod"):
        read_secret_line(path, setting="x")
    assert read_secret_line(path, setting="x", is_private=False) == "canary-token"
    path.chmod(0o440)
    assert read_secret_line(path, setting="x") == "canary-token"

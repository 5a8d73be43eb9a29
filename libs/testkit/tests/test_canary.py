"""The search for a secret finds it in every form, and does not cry at what may be shown."""

import base64
import gzip
from pathlib import Path

import pytest

from testkit.canary import Canary
from testkit.simulator.vendors import make_key

_SECRET = make_key("openai", "canary")


@pytest.mark.parametrize(
    "leak",
    [
        _SECRET.encode(),
        b"Authorization: Bearer " + _SECRET.encode(),
        b"x" + base64.b64encode(b"user:" + _SECRET.encode()),
        b"xx" + base64.b64encode(b"Bearer " + _SECRET.encode()),
        base64.urlsafe_b64encode(b"k=" + _SECRET.encode()),
        _SECRET.encode().hex().encode(),
        _SECRET[10:40].encode(),
        _SECRET[::-1].encode(),
    ],
)
def test_a_leak_is_found_in_any_form(leak: bytes, tmp_path: Path) -> None:
    """Plain, in part, encoded; in a file, and packed inside one."""
    canary = Canary(_SECRET)
    assert canary.sightings(b"before " + leak + b" after", where="here")
    plain = tmp_path / "plain.log"
    plain.write_bytes(b"." * 5_000_000 + leak)
    packed = tmp_path / "packed.bin"
    packed.write_bytes(b"head" + gzip.compress(leak))
    assert canary.sightings_in_files([plain])
    assert canary.sightings_in_files([packed])


def test_what_may_be_shown_is_no_leak() -> None:
    """The vendor's prefix and the last four characters are not the secret."""
    canary = Canary(_SECRET)
    assert canary.sightings(f"{_SECRET[:8]}…{_SECRET[-4:]}".encode(), where="here") == []
    assert canary.sightings(make_key("openai", "another").encode(), where="here") == []

"""What the simulator was asked and what it charged for, so that a test can compare the suite's ledger with it.

Holds no key and no content: a key is its fingerprint, content its hash.
"""

import hashlib
import re
import time

import msgspec

_MARKER = re.compile(rb"marker:([A-Za-z0-9_.\-]{1,128})")


def key_fingerprint(key: str) -> str:
    """Return the name under which the ledger knows a key."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def marker_of(body: bytes) -> str:
    """Return the text after `marker:` in a request, by which a test finds its own calls; empty without one."""
    found = _MARKER.search(body)
    return "" if found is None else found[1].decode()


class LedgerEntry(msgspec.Struct, kw_only=True):
    """One call."""

    call_id: int
    # When its head arrived, on the monotonic clock that all processes of a machine share.
    arrival_time: float = 0.0
    vendor: str
    route: str
    path: str
    model: str = ""
    key_fingerprint: str = ""
    marker: str = ""
    content_sha256: str = ""
    is_streaming: bool = False
    status: int = 0
    # Tokens that the vendor would charge for: also when its answer never arrived.
    input_tokens: int = 0
    output_tokens: int = 0
    fault: str = ""
    # Whether the whole answer was handed to the network.
    is_sent: bool = False

    @property
    def is_billed(self) -> bool:
        """Tell whether the vendor would charge for the call."""
        return self.input_tokens + self.output_tokens > 0


class Totals(msgspec.Struct, kw_only=True):
    """Sums over the calls that a vendor would charge for, and how many calls came at all."""

    calls: int = 0
    billed_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class Ledger:
    """The calls in order, with a bound on how many are kept; sums count all of them."""

    def __init__(self, *, entries_max: int = 200_000) -> None:
        """Start empty."""
        self._entries_max = entries_max
        self._entries: list[LedgerEntry] = []
        self._next_id = 1
        self._forgotten = Totals()

    def open(self, *, vendor: str, route: str, path: str) -> LedgerEntry:
        """Write down that a call came."""
        entry = LedgerEntry(call_id=self._next_id, arrival_time=time.monotonic(), vendor=vendor, route=route, path=path)
        self._next_id += 1
        if len(self._entries) >= self._entries_max:
            _add(self._forgotten, self._entries.pop(0))
        self._entries.append(entry)
        return entry

    def entries(self, *, after: int = 0, marker: str = "") -> list[LedgerEntry]:
        """Return the calls that came after the given one, with the marker if one is named."""
        return [each for each in self._entries if each.call_id > after and marker in ("", each.marker)]

    def totals(self) -> Totals:
        """Return the sums."""
        sums = msgspec.structs.replace(self._forgotten)
        for entry in self._entries:
            _add(sums, entry)
        return sums

    def clear(self) -> None:
        """Forget all calls; ids go on."""
        self._entries.clear()
        self._forgotten = Totals()


def _add(sums: Totals, entry: LedgerEntry) -> None:
    sums.calls += 1
    sums.billed_calls += entry.is_billed
    sums.input_tokens += entry.input_tokens
    sums.output_tokens += entry.output_tokens

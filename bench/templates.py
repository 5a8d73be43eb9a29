"""Requests serialised once: only ids differ, and they have one length, so that they can be put in as bytes.

What a driver spends on building messages is taken from the cores that it shares with what is measured.
"""

from collections.abc import Sequence

from google.protobuf.message import Message

from bench.errors import BenchError


class Template:
    """A serialised message with places for values of the same length as their marks."""

    def __init__(self, message: Message, marks: Sequence[str]) -> None:
        """Serialise the message and find the marks in it.

        Raises:
            BenchError: a mark is not in it, or not once.
        """
        wire = message.SerializeToString()
        encoded = [mark.encode() for mark in marks]
        for mark in encoded:
            if wire.count(mark) != 1:
                raise BenchError(f"{mark.decode()!r} must be in the message once, not {wire.count(mark)} times")
        places = sorted((wire.index(mark), order) for order, mark in enumerate(encoded))
        self._lengths = [len(mark) for mark in encoded]
        self._order = [order for _, order in places]
        self._parts: list[bytes] = []
        at = 0
        for place, order in places:
            self._parts.append(wire[at:place])
            at = place + self._lengths[order]
        self._tail = wire[at:]

    def fill(self, *values: bytes) -> bytes:
        """Return the message with these values, in the order of the marks."""
        pieces: list[bytes] = []
        for part, order in zip(self._parts, self._order, strict=True):
            assert len(values[order]) == self._lengths[order], "a value of another length would break the message"
            pieces += (part, values[order])
        pieces.append(self._tail)
        return b"".join(pieces)

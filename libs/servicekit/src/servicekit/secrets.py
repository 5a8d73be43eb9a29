"""The one type that holds a plaintext secret in memory. Pure: any layer may import it."""

import hmac
from typing import Final, NoReturn

from typing_extensions import override

_SHOWN: Final = "Secret(redacted)"


class Secret:
    """A plaintext secret that neither prints, pickles nor copies itself.

    `wipe` overwrites the bytes held here. Copies that `reveal` handed out, and those inside OpenSSL, live until Python
    frees
    them: keep what `reveal` returns in the narrowest scope there is.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes | bytearray | str) -> None:
        """Hold `value`; text is held as UTF-8."""
        self._value = bytearray(value.encode() if isinstance(value, str) else value)

    @property
    def is_wiped(self) -> bool:
        """Whether nothing is held any more."""
        return not self._value

    def reveal(self) -> bytes:
        """Return the plaintext.

        Raises:
            ValueError: It has been wiped.
        """
        if not self._value:
            message = "the secret is empty or has been wiped"
            raise ValueError(message)
        return bytes(self._value)

    def wipe(self) -> None:
        """Overwrite what is held, and forget it. May be called again."""
        for index in range(len(self._value)):
            self._value[index] = 0
        self._value.clear()

    @override
    def __eq__(self, other: object) -> bool:
        # In constant time, because a comparison of secrets is what a timing attack measures.
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    # A hash would be a guessable trace of the secret, kept by every set and dict.
    __hash__ = None  # type: ignore[assignment]  # how Python says unhashable

    @override
    def __repr__(self) -> str:
        return _SHOWN

    @override
    def __str__(self) -> str:
        return _SHOWN

    @override
    def __format__(self, format_spec: str) -> str:
        return _SHOWN

    @override
    def __reduce_ex__(self, protocol: object) -> NoReturn:
        message = "a Secret cannot be pickled or copied"
        raise TypeError(message)

"""Prompt templates: versioned texts with named places, filled in one pass: a filling is never read as a place."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_PLACE: Final = re.compile(r"\{\{([a-z_]+)\}\}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One version of a prompt; a change of its text is a new version, because answers name it."""

    version: str
    text: str

    def places(self) -> frozenset[str]:
        """Return the names of the places to fill."""
        return frozenset(_PLACE.findall(self.text))

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with every place filled.

        Raises:
            KeyError: A place has no value.
        """
        return _PLACE.sub(lambda place: values[place[1]], self.text)

"""Calls to an embedding model and their answers.

A space is maker/model@dimensions, whatever the route that reaches the model: only vectors of one space may be compared.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from router.domain.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNIT_TOLERANCE: Final = 1e-6

Vector: TypeAlias = "array[float]"
"""Single-precision numbers, as the vendors compute them."""


class EmbeddingPurpose(StrEnum):
    """What vectors are for; some vendors embed queries and documents differently."""

    UNSPECIFIED = "unspecified"
    DOCUMENT = "document"
    QUERY = "query"
    CLASSIFICATION = "classification"
    CLUSTERING = "clustering"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedCall:
    """What is asked of an embedding model: one batch within the vendor's limits."""

    texts: tuple[str, ...]
    dimensions: int
    purpose: EmbeddingPurpose = EmbeddingPurpose.UNSPECIFIED


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingResult:
    """Vectors in the order of the texts, each of length one."""

    vectors: tuple[Vector, ...]
    usage: Usage
    model: str
    dimensions: int
    provider_cost_nano_usd: int | None = None


def l2_normalized(values: Iterable[float]) -> Vector:
    """Return the vector scaled to length one.

    Raises:
        ValueError: If the length is zero or not finite, so that no direction exists.
    """
    vector = array("f", values)
    length = math.hypot(*vector)
    if not math.isfinite(length) or length == 0.0:
        message = "a vector of length zero or infinity has no direction"
        raise ValueError(message)
    # Vendors already answer unit vectors; scaling those again would only add rounding noise.
    if abs(length - 1.0) < _UNIT_TOLERANCE:
        return vector
    return array("f", (value / length for value in vector))

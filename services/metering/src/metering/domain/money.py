"""Integers that stay integers: amounts, and the cost of output tokens.

Redis' Lua computes in doubles, which hold whole numbers exactly up to 2^53 − 1. Every amount, limit, sum and product
that a script sees is kept below that bound, so that `amount <= limit - used` is exact. Prices are nano-USD per million
tokens; a price is split into whole nano-USD a token and a rest, because price × tokens itself would pass the bound.
"""

from typing import Final

from servicekit.errors import FieldViolation, InvalidArgumentError

AMOUNT_MAX: Final = 2**53 - 1
TOKENS_PER_PRICE: Final = 1_000_000
# rest × tokens < 10^6 × 10^9 stays below AMOUNT_MAX.
OUTPUT_TOKENS_MAX: Final = 1_000_000_000


def output_cost(tokens: int, nano_usd_per_mtok: int) -> int:
    """Return the cost of output tokens, rounded up: what is held must never be less than what is billed."""
    return -(-tokens * nano_usd_per_mtok // TOKENS_PER_PRICE)


def check_amount(value: int, field: str, *, maximum: int = AMOUNT_MAX) -> None:
    """Check that a number can be counted exactly.

    Raises:
        InvalidArgumentError: It is negative or too large.
    """
    if 0 <= value <= maximum:
        return
    raise InvalidArgumentError(
        violations=[
            FieldViolation(field=field, reason="AMOUNT_OUT_OF_RANGE", description=f"must be from 0 to {maximum}")
        ]
    )

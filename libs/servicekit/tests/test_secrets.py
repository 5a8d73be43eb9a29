import copy
import pickle
from collections.abc import Callable

import pytest

from servicekit.secrets import Secret

_CANARY = "sk-canary-0123456789"


def test_a_secret_shows_itself_nowhere() -> None:
    """No way of printing it prints it."""
    secret = Secret(_CANARY)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>40}", repr([secret]), repr({"k": secret})]
    assert not any("canary" in each for each in shown)


@pytest.mark.parametrize("leak", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_secret_is_not_copied(leak: Callable[[Secret], object]) -> None:
    """Pickling and copying would multiply what is to be wiped."""
    with pytest.raises(TypeError):
        leak(Secret(_CANARY))


def test_a_wiped_secret_is_gone() -> None:
    """After wiping there is nothing to reveal, and its buffer was overwritten."""
    secret = Secret(_CANARY)
    buffer = secret._value
    assert secret.reveal() == _CANARY.encode()
    secret.wipe()
    secret.wipe()
    assert secret.is_wiped
    assert not buffer
    with pytest.raises(ValueError, match="wiped"):
        secret.reveal()


def test_secrets_compare_by_value_and_do_not_hash() -> None:
    """Equality is by value; a set or a dict must not hold them by hash."""
    assert Secret("a") == Secret(b"a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    with pytest.raises(TypeError):
        hash(Secret("a"))

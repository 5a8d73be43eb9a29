"""Recorded answers, damaged at random: whatever a vendor sends, it is an answer or a typed error, never a crash."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import pytest

from router.domain.completions import Completion
from router.domain.errors import ProviderError
from tests.contract.provider_recordings import OWN, PROVIDERS, Recording, load, parse

ROUNDS = 40
ODD_VALUES: tuple[Any, ...] = (None, True, -1, 0.5, 2**60, 1e300, "", "x", "\ud83d", [], {}, [None], [[]], {"a": None})


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_damaged_answer_is_an_answer_or_a_typed_error(provider: str) -> None:
    """Fields gone, of another type, or absurd: in documents, in streams and in errors."""
    dice = random.Random(provider)
    recordings = [each for each in load(provider, where=OWN) if each.dialect and not each.is_embedding]
    assert recordings
    for recording in recordings:
        for _ in range(ROUNDS):
            damaged = replace(recording, body=_damaged(recording, dice))
            assert _ends_well(damaged), f"{recording.id}: {damaged.body[:500]}"


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_shortened_or_garbled_body_is_an_answer_or_a_typed_error(provider: str) -> None:
    """Cut off, or with characters changed on the way."""
    dice = random.Random(provider)
    for recording in load(provider, where=OWN):
        if recording.dialect is None or recording.is_embedding:
            continue
        for _ in range(ROUNDS):
            place = dice.randrange(len(recording.body))
            cut = replace(recording, body=recording.body[:place])
            garbled = replace(recording, body=recording.body[:place] + "\x00}" + recording.body[place + 1 :])
            assert _ends_well(cut)
            assert _ends_well(garbled)


def _ends_well(recording: Recording) -> bool:
    try:
        return isinstance(parse(recording), Completion)
    except ProviderError:
        return True


def _damaged(recording: Recording, dice: random.Random) -> str:
    if not recording.is_stream:
        return json.dumps(_damage(json.loads(recording.body), dice))
    lines = recording.body.split("\n")
    place = dice.choice([number for number, line in enumerate(lines) if "{" in line])
    prefix = "data: " if lines[place].startswith("data:") else ""
    lines[place] = prefix + json.dumps(_damage(json.loads(lines[place].removeprefix("data:")), dice))
    return "\n".join(lines)


def _damage(value: Any, dice: random.Random) -> Any:
    """Return the value with one part of it, at any depth, taken away or replaced."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(sorted(value))
        if dice.random() < 0.2:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: _damage(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.9:
        place = dice.randrange(len(value))
        return [_damage(part, dice) if number == place else part for number, part in enumerate(value)]
    return dice.choice(ODD_VALUES)

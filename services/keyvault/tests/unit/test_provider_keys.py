"""The states of a provider key, and its canonical record."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest

from keyvault.domain.canonical import CanonicalFormError, FieldReader, encode_fields
from keyvault.domain.errors import EtagMismatchError
from keyvault.domain.provider_keys import (
    RECORD_LABEL,
    Custody,
    KeyState,
    Operation,
    OperationRoute,
    ProviderKey,
    decode_key,
    encode_key,
)
from services.keyvault.tests.unit.builders import NOW, agent_holder, provider_key, stored_key

FULL = provider_key(
    holder=agent_holder(),
    mapping=(
        OperationRoute(
            operation=Operation.EMBEDDING_GENERATION,
            model="m",
            tier="t",
            capabilities=("embedding", "vision"),
            features=("server_tools",),
            context_window_tokens=8192,
            dimensions=1024,
        ),
        OperationRoute(operation=Operation.CHAT, model="n"),
    ),
    custody=Custody.STRICT,
    state_reason="ünder test",
    cool_down_until=NOW + timedelta(seconds=1, microseconds=5),
    validated_models=("a", "b"),
    validated_operations=(Operation.CHAT,),
    validate_time=NOW,
    state_time=NOW,
    rejected_time=NOW,
    expire_time=NOW,
)
OTHER_VALUES: dict[str, Any] = {
    "provider_key_id": "other",
    "holder": agent_holder("agent-2"),
    "provider": "openai",
    "base_url": "https://api.openai.com",
    "label": "other",
    "priority": 1,
    "mapping": (),
    "custody": Custody.CACHED,
    "state": KeyState.FAILING,
    "state_reason": "other",
    "cool_down_until": None,
    "key_version": 2,
    "fingerprint": "other",
    "secret_suffix": "othe",
    "validated_models": ("a",),
    "validated_operations": (),
    "create_time": NOW - timedelta(days=1),
    "update_time": NOW + timedelta(days=1),
    "validate_time": None,
    "state_time": None,
    "rejected_time": None,
    "expire_time": None,
}


@pytest.mark.parametrize("key", [provider_key(), FULL])
def test_a_record_comes_back(key: ProviderKey) -> None:
    """Decoding the canonical record gives the key."""
    assert decode_key(encode_key(key)) == key


@pytest.mark.parametrize("name", [field.name for field in fields(ProviderKey)])
def test_every_field_is_in_the_record(name: str) -> None:
    """No field can be changed without changing what the HMAC covers."""
    assert encode_key(replace(FULL, **{name: OTHER_VALUES[name]})) != encode_key(FULL)


@pytest.mark.parametrize("drop", [0, 1])
def test_a_record_with_other_fields_is_refused(drop: int) -> None:
    """Too few fields, or too many, are not read."""
    read = FieldReader(RECORD_LABEL, encode_key(FULL))
    record = read.rest()
    changed = record[:-1] if drop else [*record, b""]
    with pytest.raises(CanonicalFormError):
        decode_key(encode_fields(RECORD_LABEL, changed))


def test_a_key_ends_at_its_time_whatever_its_state_says() -> None:
    """From that very moment; a key without a time never does."""
    key = provider_key(expire_time=NOW)
    assert key.is_expired(NOW)
    assert not key.is_expired(NOW - timedelta(microseconds=1))
    assert not provider_key().is_expired(NOW + timedelta(days=36_500))
    assert provider_key(state=KeyState.EXPIRED).is_expired(NOW)


def test_an_etag_guards_an_update() -> None:
    """An etag of an earlier state is refused; an empty one overwrites."""
    stored = stored_key(audit_index=17)
    stored.ensure_etag(stored.etag)
    stored.ensure_etag("")
    with pytest.raises(EtagMismatchError):
        stored.ensure_etag(stored_key(audit_index=18).etag)

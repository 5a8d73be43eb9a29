"""Writes the seeds that are real encodings: `python -m tests.fuzz.make_seeds`. Those that once broke a target are kept.

What is sealed or salted differs each time; seeds that exist stay as they are.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from google.protobuf.descriptor import FieldDescriptor

from keyvault.domain.bindings import AgentBinding, encode_binding
from keyvault.domain.canonical import encode_fields
from keyvault.domain.envelope import seal
from keyvault.domain.halts import Halt, HaltKind, HaltScope, HaltSet, encode_halts
from keyvault.domain.provider_keys import Operation, encode_key
from keyvault.domain.sealing import SUBMISSION_LABEL, info_bytes
from keyvault.domain.shares import KeyShare, ShareCap, encode_share
from servicekit.secrets import Secret
from services.keyvault.tests.unit.builders import provider_key
from tests.fuzz.requests import METHODS
from tests.fuzz.run import FOLDER
from tests.fuzz.targets import (
    CONTEXT,
    KEK,
    LEAVES,
    NOW,
    PROOF,
    SIGNED,
    SIGNER,
    SUBMISSION_PARTS,
    known_leaf,
    with_length,
)
from transparency.merkle import root_of
from transparency.paths import consistency_path, inclusion_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from google.protobuf.message import Message

    from transparency.paths import Span

_DEPTH_MAX: Final = 4
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_URLS: Final = (
    "https://api.openai.com/v1",
    "HTTPS://API.Example.COM:443/v1/",
    "http://localhost:11434",
    "https://[::1]:8443/x",
    "http://127.0.0.1:8080/%2e/a",
    "https://xn--bcher-kva.example.com/ü",
)
_SECRETS: Final = (b"sk-ant-api03-0123456789", " sk-proj-x\u2003\n".encode(), b"\xef\xbb\xbfsk", b"two words")


def _records() -> list[bytes]:
    binding = AgentBinding(agent_id="agent-1", owner_id="owner-1", account=CONTEXT.holder.owned_by, binding_version=1)
    share = KeyShare(
        provider_key_id=CONTEXT.provider_key_id,
        agent_id="agent-1",
        organization_id="org-1",
        operations=(Operation.GUARDRAIL_EVALUATION,),
        cap=ShareCap(day_calls=5),
        is_ended=False,
        create_time=NOW,
    )
    halt = Halt(
        halt_id="halt-1",
        scope=HaltScope(HaltKind.EVERYTHING, ""),
        reason="breach",
        actor="op",
        owner_id="",
        create_time=NOW,
        audit_index=7,
    )
    records = [encode_key(provider_key()), encode_binding(binding), encode_share(share), encode_halts(HaltSet((halt,)))]
    return [bytes([place]) + record for place, record in enumerate(records)]


def _hashes(spans: Iterable[Span]) -> list[bytes]:
    return [root_of(LEAVES[span.start : span.end]) for span in spans]


def _proofs() -> list[bytes]:
    cases: list[tuple[int, int, int, int, int, Sequence[bytes]]] = [
        (index, size, size, size, index, _hashes(inclusion_path(index, size)))
        for index, size in ((0, 1), (5, 8), (6, 7), (32, 33))
    ]
    cases += [
        (old, new, old, new, 0, _hashes(consistency_path(old, new))) for old, new in ((1, 2), (6, 8), (8, 33), (33, 33))
    ]
    return [PROOF.pack(*numbers) + b"".join(proof) for *numbers, proof in cases]


def fill(message: Message, depth: int = 0) -> Message:
    """Set every field of a message to something that is likely to be right; of a oneof, the first."""
    seen: set[str] = set()
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None:
            if field.containing_oneof.name in seen:
                continue
            seen.add(field.containing_oneof.name)
        _set(message, field, depth)
    return message


def _set(message: Message, field: Any, depth: int) -> None:
    if field.message_type is not None:
        if depth < _DEPTH_MAX and not field.message_type.GetOptions().map_entry:
            part = getattr(message, field.name)
            fill(part.add() if field.is_repeated else part, depth + 1)
            part if field.is_repeated else part.SetInParent()
        return
    value: object = _likely(field)
    if field.is_repeated:
        getattr(message, field.name).append(value)
    else:
        setattr(message, field.name, value)


def _likely(field: Any) -> object:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return X25519PrivateKey.from_private_bytes(b"r" * 32).public_key().public_bytes_raw()
    if field.type == FieldDescriptor.TYPE_STRING:
        return {
            "base_url": _URLS[0],
            "provider": "openai",
            "request_id": "019baf4e-8800-7000-8000-000000000001",
            "holder": "019baf4e-8800-7000-8000-000000000002",
        }.get(field.name, CONTEXT.provider_key_id)
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return 0.5
    return 1


def _requests() -> list[bytes]:
    seeds = []
    for name, method in METHODS.items():
        message = fill(method.message()).SerializeToString(deterministic=True)
        seeds.append(f"{name}\n{'router' if name.startswith('Lease') else 'operator'}\n".encode() + message)
    return seeds


def seeds() -> dict[str, list[bytes]]:
    """Return the seeds of every target."""
    envelope = seal(Secret(b"sk-fuzz-0123456789"), context=CONTEXT, kek=KEK)
    recipient = X25519PrivateKey.from_private_bytes(b"u" * 32).public_key()
    info = info_bytes((SUBMISSION_LABEL, *SUBMISSION_PARTS))
    return {
        "base_url": [url.encode() for url in _URLS],
        "canonical": [encode_fields("byok/fuzz", fields) for fields in ((), ("a", b"", 7), ("ü" * 300,))],
        "checkpoint": [SIGNER.sign(SIGNED).encode(), SIGNER.verifier_key.encode()],
        "envelope": [with_length(envelope.sealed_secret, envelope.wrapped_dek)],
        "leaf": [known_leaf()],
        "proof": _proofs(),
        "records": _records(),
        "requests": _requests(),
        "secret": list(_SECRETS),
        "submission": [_SUITE.encrypt(b"sk-fuzz", recipient, info)],
    }


def main() -> int:
    """Write what is missing."""
    for target, encodings in seeds().items():
        folder = FOLDER / "seeds" / target
        folder.mkdir(parents=True, exist_ok=True)
        for place, encoded in enumerate(encodings):
            path = folder / f"real-{place:02}"
            if not path.exists():
                path.write_bytes(encoded)
    return 0


if __name__ == "__main__":
    sys.exit(main())

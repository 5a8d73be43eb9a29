"""What is fuzzed: every parser that sees bytes from outside, or bytes that somebody may have put into the database.

A target takes any bytes. It returns when they are refused in the way that is promised, or taken and what was made of
them holds together; everything else is a finding: another exception, a forgery that is accepted, two readings of one
thing. Keys are constants, so that a seed means the same tomorrow.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from yarl import URL

from keyvault.domain.audit_log import AuditEntry, EntryKind, decode_leaf, encode_leaf, leaf_key_version
from keyvault.domain.base_urls import canonical_base_url
from keyvault.domain.bindings import decode_binding, encode_binding
from keyvault.domain.canonical import CanonicalFormError, decode_fields, encode_fields
from keyvault.domain.envelope import Envelope, EnvelopeContext, Kek, open_envelope, unwrap_dek
from keyvault.domain.errors import AuditLogCorruptError, EnvelopeCorruptError, SealedSecretInvalidError
from keyvault.domain.halts import decode_halts, encode_halts
from keyvault.domain.keyring import KeyPurpose, Keyring, KeyringKey, KeyState, make_record, unlock
from keyvault.domain.leaf_seals import LeafSealer
from keyvault.domain.ownership import Account, AccountKind, Holder, Scope
from keyvault.domain.provider_keys import decode_key, encode_key
from keyvault.domain.sealing import open_submission
from keyvault.domain.shares import decode_share, encode_share
from keyvault.domain.submitted_secrets import parse_secret
from router.domain.refusals import EgressForbiddenError
from router.transports.egress_guard import EgressPolicy
from servicekit.errors import InvalidArgumentError
from servicekit.secrets import Secret
from tests.fuzz.requests import parse_request
from transparency.checkpoints import Checkpoint, CheckpointSigner, open_checkpoint
from transparency.errors import CheckpointInvalidError, ProofInvalidError
from transparency.merkle import leaf_hash, root_of, verify_consistency, verify_inclusion

if TYPE_CHECKING:
    from collections.abc import Callable

    Target = Callable[[bytes], None]

CONTEXT: Final = EnvelopeContext(
    deployment="fuzz",
    provider_key_id="0197a1b2-0000-7000-8000-000000000001",
    key_version=1,
    holder=Holder(Scope.OWNER, Account(AccountKind.OWNER, "owner-1")),
    provider="openai",
    base_url="https://api.openai.com/v1",
)
KEK: Final = Kek(version=1, key=Secret(b"k" * 32))
NOW: Final = datetime(2026, 1, 15, 12, tzinfo=UTC)
ALLOWED_HOSTS: Final = ("localhost:11434", "127.0.0.1:8080", "[::1]:8443")
LEAVES: Final = [leaf_hash(bytes([number])) for number in range(33)]
ROOTS: Final = [root_of(LEAVES[:size]) for size in range(len(LEAVES) + 1)]
ORIGIN: Final = "byok.keyvault/fuzz"
SIGNER: Final = CheckpointSigner(ORIGIN, b"s" * 32)
SIGNED: Final = Checkpoint(ORIGIN, 33, ROOTS[33])
NOTE: Final = SIGNER.sign(SIGNED)
SUBMISSION_PARTS: Final = ("fuzz", "owner-1", "openai", CONTEXT.base_url, "request", "submission-1")
_U16: Final = struct.Struct(">H")
PROOF: Final = struct.Struct(">qqBBB")
_HASH_BYTES: Final = 32


def _keyring() -> Keyring:
    keys = [KeyringKey(purpose, 1, KeyState.PRIMARY, Secret(bytes([purpose]) * 32)) for purpose in KeyPurpose]
    records = [(make_record("fuzz", key, root_key_id="fuzz", wrapped_key=b""), key.key) for key in keys]
    return unlock("fuzz", records)


KEYRING: Final = _keyring()
SEALER: Final = LeafSealer(lambda: KEYRING)


def with_length(first: bytes, second: bytes) -> bytes:
    """Return two strings as one, as the envelope's target reads them."""
    return _U16.pack(len(first)) + first + second


def fuzz_envelope(data: bytes) -> None:
    """Nothing but what was sealed opens, and nothing else happens."""
    length = int.from_bytes(data[:2], "big")
    envelope = Envelope(sealed_secret=data[2 : 2 + length], wrapped_dek=data[2 + length :])
    try:
        unwrap_dek(envelope.wrapped_dek, associated_data=CONTEXT.canonical(), kek=KEK)
        opened = open_envelope(envelope, context=CONTEXT, kek=KEK)
    except EnvelopeCorruptError:
        return
    # Only a seed of the corpus opens: whoever finds another one has broken AES-GCM or its parser.
    assert opened.reveal() == b"sk-fuzz-0123456789", "an envelope that nobody sealed was opened"


def fuzz_canonical(data: bytes) -> None:
    """What is taken is the one encoding of what it is taken for."""
    try:
        fields = decode_fields("byok/fuzz", data)
    except CanonicalFormError:
        return
    assert encode_fields("byok/fuzz", fields) == data, "two encodings of one list of fields"


def fuzz_leaf(data: bytes) -> None:
    """A leaf reads the same wherever it is read, and an unsealed one is found."""
    try:
        SEALER.check(data, kind=int(EntryKind.KEY_REVOKED), subject="key/k")
    except AuditLogCorruptError:
        pass
    except Exception as error:
        if type(error).__name__ != "KekVersionUnavailableError":
            raise
    try:
        entry = decode_leaf(data)
    except CanonicalFormError:
        return
    version, kind = leaf_key_version(data)
    assert kind == int(entry.kind), "two readings of one leaf"
    again = decode_leaf(encode_leaf(entry, key_version=version))
    assert again == entry, "a leaf reads differently when it is written again"


def fuzz_records(data: bytes) -> None:
    """Each record of authority is taken only in its one encoding."""
    codecs: tuple[tuple[Callable[[bytes], Any], Callable[[Any], bytes]], ...] = (
        (decode_key, encode_key),
        (decode_binding, encode_binding),
        (decode_share, encode_share),
        (decode_halts, encode_halts),
    )
    decode, encode = codecs[data[0] % len(codecs)] if data else codecs[0]
    record = data[1:]
    try:
        value = decode(record)
    except CanonicalFormError:
        return
    assert encode(value) == record, "two encodings of one record"


def fuzz_proof(data: bytes) -> None:
    """No proof shows what is not so of the tree that its root is of.

    Of which size that is, a root does not say: a checkpoint does, which is signed.
    """
    if len(data) < PROOF.size:
        return
    claimed, size, a, b, leaf = PROOF.unpack_from(data)
    rest = data[PROOF.size :]
    proof = [rest[at : at + _HASH_BYTES] for at in range(0, len(rest), _HASH_BYTES)]
    a, b, leaf = a % len(ROOTS), b % len(ROOTS), leaf % len(LEAVES)
    try:
        verify_inclusion(leaf_hash=LEAVES[leaf], index=claimed, size=size, proof=proof, root=ROOTS[a])
    except ProofInvalidError:
        pass
    else:
        assert size != a or claimed == leaf, "a leaf was shown where it does not stand"
    try:
        verify_consistency(old_size=claimed, old_root=ROOTS[a], new_size=size, new_root=ROOTS[b], proof=proof)
    except ProofInvalidError:
        return
    assert size != b or claimed == a, "a tree was shown to continue what it does not"


def fuzz_checkpoint(data: bytes) -> None:
    """No note opens but what was signed."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        opened = open_checkpoint(text, [SIGNER.verifier_key], origin=ORIGIN)
    except CheckpointInvalidError:
        pass
    else:
        assert opened == SIGNED, "a checkpoint that nobody signed was opened"
    try:
        open_checkpoint(NOTE, [text])
    except CheckpointInvalidError:
        return
    assert text.strip() == SIGNER.verifier_key, "another verifier key opened the checkpoint"


def fuzz_secret(data: bytes) -> None:
    """What is taken as a secret goes into an HTTP header as it is."""
    try:
        submitted = parse_secret(data, field="plaintext")
    except InvalidArgumentError:
        return
    secret = submitted.secret.reveal()
    assert secret, "an empty secret"
    assert all(0x21 <= each <= 0x7E for each in secret), "a secret that no header may carry"
    assert parse_secret(secret, field="plaintext").secret.reveal() == secret, "a secret changes when it is sent again"


def fuzz_submission(data: bytes) -> None:
    """Nothing that was not sealed to this key and context opens."""
    key = KeyringKey(KeyPurpose.SUBMISSION, 1, KeyState.PRIMARY, Secret(b"u" * 32))
    try:
        opened = open_submission(data, key=key, bound_to=SUBMISSION_PARTS)
    except SealedSecretInvalidError:
        return
    # Anyone may seal; what comes out is a secret like any other.
    fuzz_secret(opened.reveal())


def fuzz_base_url(data: bytes) -> None:
    """What may be saved is its own canonical form, and means the same host to whoever calls it."""
    try:
        canonical = canonical_base_url(data.decode("utf-8", "replace"), allowed_hosts=ALLOWED_HOSTS)
    except InvalidArgumentError:
        return
    assert canonical_base_url(canonical, allowed_hosts=ALLOWED_HOSTS) == canonical, "a second canonical form"
    # As the Router's transport reads it.
    stored, called = urlsplit(canonical), URL(canonical, encoded=True)
    assert (stored.scheme, stored.hostname) == (called.scheme, called.raw_host), "two readings of one host"
    assert (stored.port or called.port, stored.path or "/") == (called.port, called.raw_path or "/"), "two readings"
    try:
        EgressPolicy(ALLOWED_HOSTS).endpoint(f"{canonical}/chat/completions")
    except EgressForbiddenError as error:
        message = "what may be saved is refused when it is called"
        raise AssertionError(message) from error


def known_leaf() -> bytes:
    """Return a leaf as it is stored."""
    entry = AuditEntry(
        kind=EntryKind.KEY_REVOKED, time=NOW, caller="edge", provider_key_id="k", details=(("reason", "lost"),)
    )
    return SEALER.seal(entry)


TARGETS: Final[dict[str, Target]] = {
    "base_url": fuzz_base_url,
    "canonical": fuzz_canonical,
    "checkpoint": fuzz_checkpoint,
    "envelope": fuzz_envelope,
    "leaf": fuzz_leaf,
    "proof": fuzz_proof,
    "records": fuzz_records,
    "requests": parse_request,
    "secret": fuzz_secret,
    "submission": fuzz_submission,
}

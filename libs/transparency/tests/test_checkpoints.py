"""Signed notes and checkpoints: published notes open, ours do, and nothing else does."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transparency.checkpoints import Checkpoint, CheckpointSigner, open_checkpoint
from transparency.errors import CheckpointInvalidError
from transparency.merkle import EMPTY_ROOT, SIZE_MAX
from transparency.notes import (
    NOTE_CHARACTERS_MAX,
    SIGNATURES_MAX,
    NoteSigner,
    joined_notes,
    open_note,
    parse_verifier_key,
)

# The example of Go's package sumdb/note, with its seed, and a checkpoint that the Go checksum database published.
NEUMANN_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANN_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
NEUMANN_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NEUMANN_NOTE = (
    f"{NEUMANN_TEXT}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6K"
    "E6RyyBwJnAM=\n"
)
SUMDB_KEY = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
SUMDB_NOTE = (
    "go.sum database tree\n63096908\n8lHrQPRYe4KT4WQ9/Qk8/taKnD6IRHbFgfN7vQE2Y54=\n\n"
    "— sum.golang.org Az3gri/oVBN1jAhNZ/iS+W31psFAWRT20/GyrhpU6taFwulQGetBkH5S7wpGXdS935jiIGiUUAXBVHzT/P6fYhqAmAk=\n"
)
ORIGIN = "byok.keyvault/test"
SIGNER = CheckpointSigner(ORIGIN, bytes(range(32)))
CHECKPOINT = Checkpoint(ORIGIN, 20_852_163, bytes(range(32)))
NOTE = SIGNER.sign(CHECKPOINT)
KEY = SIGNER.verifier_key


def test_published_notes_open() -> None:
    """Notes that other implementations signed."""
    text, signed_by = open_note(NEUMANN_NOTE, [parse_verifier_key(NEUMANN_KEY)])
    assert (text, [each.text for each in signed_by]) == (NEUMANN_TEXT, [NEUMANN_KEY])
    text, _ = open_note(SUMDB_NOTE, [parse_verifier_key(SUMDB_KEY)])
    assert text.split("\n")[:2] == ["go.sum database tree", "63096908"]


def test_a_note_is_signed_as_others_sign_it() -> None:
    """Ed25519 is deterministic: the published seed gives the published note and verifier key."""
    signer = NoteSigner("PeterNeumann", NEUMANN_SEED)
    assert signer.verifier.text == NEUMANN_KEY
    assert signer.sign(NEUMANN_TEXT) == NEUMANN_NOTE


def test_a_checkpoint_comes_back() -> None:
    """What was signed is what is opened, also under one of several keys."""
    other = CheckpointSigner(ORIGIN, bytes(32)).verifier_key
    assert open_checkpoint(NOTE, [KEY]) == CHECKPOINT
    assert open_checkpoint(NOTE, [other, KEY], origin=ORIGIN) == CHECKPOINT
    empty = Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    assert open_checkpoint(SIGNER.sign(empty), [KEY]) == empty


def test_a_checkpoint_reads_as_the_specification_writes_it() -> None:
    """Origin, size and root, a line each."""
    assert NOTE.split("\n")[:4] == [ORIGIN, "20852163", base64.b64encode(bytes(range(32))).decode(), ""]
    assert NOTE.split("\n")[4].startswith(f"— {ORIGIN} ")


def test_a_note_with_a_witness_beside_the_log_opens() -> None:
    """Signatures of keys that are not known are passed over."""
    witness = NoteSigner("witness.example/w1", bytes(32)).sign(CHECKPOINT.text).split("\n")[-2]
    assert open_checkpoint(f"{NOTE}{witness}\n", [KEY]) == CHECKPOINT


def test_a_checkpoint_that_two_keys_signed_opens_by_either() -> None:
    """As during a rotation; a wrong signature of a key that is known still condemns the note."""
    second = CheckpointSigner(ORIGIN, bytes(range(1, 33)))
    both = joined_notes([NOTE, second.sign(CHECKPOINT)])
    for keys in ([KEY], [second.verifier_key], [KEY, second.verifier_key]):
        assert open_checkpoint(both, keys) == CHECKPOINT
    line = both.splitlines()[-1]
    wrong = both.replace(line, line[:-6] + ("A" if line[-6] != "A" else "B") + line[-5:])
    assert open_checkpoint(wrong, [KEY]) == CHECKPOINT
    with pytest.raises(CheckpointInvalidError):
        open_checkpoint(wrong, [KEY, second.verifier_key])
    with pytest.raises(ValueError, match="one text"):
        joined_notes([NOTE, second.sign(Checkpoint(ORIGIN, 1, bytes(32)))])


def test_a_known_key_of_another_name_is_not_the_logs() -> None:
    """A witness that is trusted for its own log does not speak for this one."""
    witness = CheckpointSigner("other.example/log", bytes(32))
    note = NoteSigner("other.example/log", bytes(32)).sign(CHECKPOINT.text)
    with pytest.raises(CheckpointInvalidError, match="key of its log"):
        open_checkpoint(note, [witness.verifier_key])


def test_a_checkpoint_of_another_log_is_refused() -> None:
    """The origin is part of what is asked."""
    with pytest.raises(CheckpointInvalidError, match="another log"):
        open_checkpoint(NOTE, [KEY], origin="byok.keyvault/other")


@pytest.mark.parametrize("position", range(len(NOTE)))
def test_every_changed_character_is_refused(position: int) -> None:
    """No character of a note can be another."""
    for other in ("A", "1", "\n", "é", ""):
        changed = NOTE[:position] + other + NOTE[position + 1 :]
        if changed != NOTE:
            with pytest.raises(CheckpointInvalidError):
                open_checkpoint(changed, [KEY])


def test_a_wrong_signature_of_a_known_key_condemns_the_note() -> None:
    """Also beside a right one."""
    other = CheckpointSigner(ORIGIN, bytes(32))
    wrong = other.sign(Checkpoint(ORIGIN, 1, bytes(32))).split("\n")[-2]
    note = f"{NOTE}{wrong}\n"
    assert open_checkpoint(note, [KEY]) == CHECKPOINT
    with pytest.raises(CheckpointInvalidError, match="wrong"):
        open_checkpoint(note, [KEY, other.verifier_key])


@pytest.mark.parametrize(
    "text",
    [
        f"{ORIGIN}\n1\n",
        f"\n1\n{CHECKPOINT.text.split()[2]}\n",
        f"{ORIGIN}\n01\n{CHECKPOINT.text.split()[2]}\n",
        f"{ORIGIN}\n-1\n{CHECKPOINT.text.split()[2]}\n",
        f"{ORIGIN}\n{SIZE_MAX + 1}\n{CHECKPOINT.text.split()[2]}\n",
        f"{ORIGIN}\n\u0661\n{CHECKPOINT.text.split()[2]}\n",
        f"{ORIGIN}\n0\n{CHECKPOINT.text.split()[2]}\n",
        f"{ORIGIN}\n1\nAAAA\n",
        f"{ORIGIN}\n1\n{CHECKPOINT.text.split()[2][:-1]}\n",
        f"{ORIGIN}\n1\n{CHECKPOINT.text.split()[2]}\nextension\n",
    ],
)
def test_a_signed_text_that_is_no_checkpoint_is_refused(text: str) -> None:
    """A signature does not make a checkpoint of anything."""
    note = NoteSigner(ORIGIN, bytes(range(32))).sign(text)
    with pytest.raises(CheckpointInvalidError):
        open_checkpoint(note, [KEY])


def test_what_is_no_checkpoint_is_not_signed() -> None:
    """The log's key signs for its own log, and only what others can open."""
    for bad in (
        Checkpoint("byok.keyvault/other", 1, bytes(32)),
        Checkpoint(ORIGIN, -1, bytes(32)),
        Checkpoint(ORIGIN, SIZE_MAX + 1, bytes(32)),
        Checkpoint(ORIGIN, 1, bytes(31)),
    ):
        with pytest.raises(ValueError, match="checkpoint"):
            SIGNER.sign(bad)
    for name in ("", "a b", "a+b", "a\nb", "a\u2003b"):
        with pytest.raises(ValueError, match="name"):
            CheckpointSigner(name, bytes(32))
    for text in ("no end", "a\tb\n", "a\rb\n"):
        with pytest.raises(ValueError, match="text"):
            NoteSigner(ORIGIN, bytes(32)).sign(text)


@pytest.mark.parametrize(
    "key",
    ["", "a", "a+b", "a+b+c", KEY[:-1], KEY + "A", KEY.replace("+", "", 1), " " + KEY, KEY.replace("byok", "bxok"),
     "a" * 2000 + KEY, ORIGIN + "+00000000+" + KEY.rpartition("+")[2], KEY.rpartition("+")[0] + "+Aw==", "é" + KEY],
)  # fmt: skip
def test_what_is_no_verifier_key_is_refused(key: str) -> None:
    """A key that was cut, renamed or mistyped is told, not passed over."""
    with pytest.raises(CheckpointInvalidError):
        open_checkpoint(NOTE, [key])


def test_there_is_a_limit_on_everything() -> None:
    """A long note and one with many signatures are refused before a signature is checked."""
    line = NOTE.split("\n")[-2] + "\n"
    with pytest.raises(CheckpointInvalidError, match="too long"):
        open_checkpoint(NOTE + "x" * NOTE_CHARACTERS_MAX, [KEY])
    with pytest.raises(CheckpointInvalidError, match="too many"):
        open_checkpoint(NOTE + line * SIGNATURES_MAX, [KEY])
    assert open_checkpoint(NOTE + line * (SIGNATURES_MAX - 1), [KEY]) == CHECKPOINT


@given(note=st.text(max_size=400) | st.from_regex(r"(\A.*\n\d*\n.*\n\n(\u2014 .* .*\n)*\Z)"), key=st.text(max_size=80))
@settings(max_examples=300, deadline=None)
def test_nothing_but_a_refusal_comes_of_any_text(note: str, key: str) -> None:
    """Any text as note or key is refused without a crash."""
    for keys in ([KEY], [key], []):
        with pytest.raises(CheckpointInvalidError):
            open_checkpoint(note, keys)

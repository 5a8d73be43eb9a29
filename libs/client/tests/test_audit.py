"""The audit log on the caller's side: only what is proved under a pinned key is given, whatever the other side says."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from byok.keyvault.v1 import audit_service_pb2 as audit_pb2
from byok_client.audit import Audit
from transparency.checkpoints import Checkpoint, CheckpointSigner
from transparency.errors import CheckpointInvalidError, ProofInvalidError
from transparency.merkle import leaf_hash, root_of
from transparency.tiles import TiledTree, TileId

ORIGIN = "byok.keyvault/test"
SIGNER = CheckpointSigner(ORIGIN, bytes(32))
LEAVES = [b"leaf %d" % number for number in range(7)]
HASHES = [leaf_hash(leaf) for leaf in LEAVES]
TREE = TiledTree({TileId(0, 0): b"".join(HASHES)})


def checkpoint(size: int) -> Checkpoint:
    """Return the checkpoint of the first leaves."""
    return Checkpoint(ORIGIN, size, root_of(HASHES[:size]))


class Vault:
    """A KeyVault that answers two entries a page, and lies as it is told to."""

    def __init__(self) -> None:
        self.signer = SIGNER
        self.lie: Callable[[Any], None] = lambda _: None
        self.asked: list[str] = []

    async def __call__(self, method: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
        """Answer in the place of a channel."""
        self.asked.append(type(request).__name__)
        answer = self.answer(request)
        self.lie(answer)
        return answer

    def answer(self, request: Any) -> Any:
        """Return the true answer."""
        if isinstance(request, audit_pb2.ListEntriesRequest):
            start = int(request.page_token or "0")
            entries = [
                audit_pb2.ProvedEntry(
                    entry=audit_pb2.Entry(audit_index=index + 1),
                    leaf=LEAVES[index],
                    leaf_hash=HASHES[index],
                    inclusion_proof=TREE.inclusion_proof(index, len(LEAVES)),
                )
                for index in range(start, min(start + 2, len(LEAVES)))
            ]
            token = str(start + 2) if start + 2 < len(LEAVES) else ""
            return audit_pb2.ListEntriesResponse(
                entries=entries, checkpoint=self.signer.sign(checkpoint(len(LEAVES))), next_page_token=token
            )
        proof = TREE.consistency_proof(request.old_size, request.new_size)
        return audit_pb2.GetConsistencyProofResponse(proof=proof, new_size=request.new_size)


@pytest.fixture
def vault() -> Vault:
    """Return a truthful one."""
    return Vault()


@pytest.fixture
async def audit(vault: Vault) -> Any:
    """Return the client of it; its channel is never used."""
    async with grpc.aio.insecure_channel("localhost:1") as channel:
        yield Audit(channel, vault)  # type: ignore[arg-type]  # in the place of a channel


async def listed(audit: Audit) -> list[int]:
    """Return the indexes that are given."""
    entries = audit.entries(audit_pb2.ListEntriesRequest(), verifier_keys=[SIGNER.verifier_key])
    return [each.entry.audit_index async for each in entries]


async def test_all_pages_are_given_once_they_are_proved(audit: Audit, vault: Vault) -> None:
    """Every entry, in order; the request of the caller is left as it was."""
    request = audit_pb2.ListEntriesRequest(key_id="k")
    entries = [each async for each in audit.entries(request, verifier_keys=[SIGNER.verifier_key])]
    assert [each.entry.audit_index for each in entries] == [1, 2, 3, 4, 5, 6, 7]
    assert len(vault.asked) == 4
    assert request == audit_pb2.ListEntriesRequest(key_id="k")


def _edit(**fields: Any) -> Callable[[Any], None]:
    def lie(answer: audit_pb2.ListEntriesResponse) -> None:
        for name, value in fields.items():
            setattr(answer.entries[min(1, len(answer.entries) - 1)], name, value)

    return lie


def _move(answer: audit_pb2.ListEntriesResponse) -> None:
    answer.entries[1].entry.audit_index += 1


def _cut(answer: audit_pb2.ListEntriesResponse) -> None:
    del answer.entries[1].inclusion_proof[-1]


@pytest.mark.parametrize(
    "lie",
    [_edit(leaf=b"forged"), _edit(leaf=b"forged", leaf_hash=leaf_hash(b"forged")), _edit(leaf=b"", leaf_hash=bytes(32)),
     _edit(leaf_hash=b""), _move, _cut],
)  # fmt: skip
async def test_an_entry_that_is_not_in_the_log_is_not_given(
    audit: Audit, vault: Vault, lie: Callable[[Any], None]
) -> None:
    """Another leaf, hash, place or proof; the entry before it, which is true, is given."""
    vault.lie = lie
    entries = audit.entries(audit_pb2.ListEntriesRequest(), verifier_keys=[SIGNER.verifier_key])
    assert (await anext(entries)).entry.audit_index == 1
    with pytest.raises(ProofInvalidError):
        await anext(entries)


async def test_a_forgotten_leaf_is_proved_by_its_hash(audit: Audit, vault: Vault) -> None:
    """An empty leaf with its true hash stands where it stood."""
    vault.lie = _edit(leaf=b"")
    assert await listed(audit) == [1, 2, 3, 4, 5, 6, 7]


async def test_a_checkpoint_of_another_key_is_not_believed(audit: Audit, vault: Vault) -> None:
    """Also when it carries the same name, and everything fits it."""
    vault.signer = CheckpointSigner(ORIGIN, bytes([1]) * 32)
    with pytest.raises(CheckpointInvalidError):
        await listed(audit)


@pytest.mark.parametrize("old", [0, 1, 3, 4, 7])
async def test_a_log_that_grew_continues_what_was_kept(audit: Audit, old: int) -> None:
    """From the empty log, from any size, and from the same one."""
    note = SIGNER.sign(checkpoint(7))
    assert await audit.continues(checkpoint(old), note, verifier_keys=[SIGNER.verifier_key]) == checkpoint(7)


async def test_a_log_that_was_rolled_back_or_forked_does_not_continue(audit: Audit) -> None:
    """A smaller log, another root of the same size, and another history are told."""
    forged = Checkpoint(ORIGIN, 4, bytes(32))
    for old, new in ((checkpoint(7), checkpoint(4)), (forged, checkpoint(4)), (forged, checkpoint(7))):
        with pytest.raises(ProofInvalidError):
            await audit.continues(old, SIGNER.sign(new), verifier_keys=[SIGNER.verifier_key])

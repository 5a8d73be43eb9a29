"""KeyVault's audit log, checked on this side: what is given is proved against a checkpoint under a pinned key.

Nothing that KeyVault says of its own log is believed: a verifier key comes from where KeyVault cannot change it.
"""

from collections.abc import AsyncIterator, Sequence

import grpc

from byok.keyvault.v1 import audit_service_pb2 as audit_pb2
from byok.keyvault.v1.audit_service_pb2_grpc import AuditServiceStub
from byok_client.management import ManagementCalls
from transparency.checkpoints import Checkpoint, open_checkpoint
from transparency.errors import ProofInvalidError
from transparency.merkle import leaf_hash, verify_consistency, verify_inclusion


class Audit:
    """The audit log. Roles: edge, operator; all but `entries` also metering."""

    def __init__(self, channel: grpc.aio.Channel, call: ManagementCalls) -> None:
        """Use `channel` to KeyVault."""
        self._stub = AuditServiceStub(channel)
        self._call = call

    async def checkpoint(self, covering_index: int = 0) -> audit_pb2.GetCheckpointResponse:
        """Read the newest checkpoint and the keys that sign; to be compared with pinned ones."""
        return await self._call(self._stub.GetCheckpoint, audit_pb2.GetCheckpointRequest(covering_index=covering_index))

    async def entries(
        self, request: audit_pb2.ListEntriesRequest, *, verifier_keys: Sequence[str]
    ) -> AsyncIterator[audit_pb2.ProvedEntry]:
        """Give the entries that fit, from page to page, each once it is proved.

        Raises:
            CheckpointInvalidError: A checkpoint is not signed under one of `verifier_keys`.
            ProofInvalidError: An entry is not in the log that was signed, or is another one.
            ByokError: The service refused, or did not answer.
        """
        asked = audit_pb2.ListEntriesRequest()
        asked.CopyFrom(request)
        while True:
            page = await self._call(self._stub.ListEntries, asked)
            checkpoint = open_checkpoint(page.checkpoint, verifier_keys)
            for each in page.entries:
                _check(each, checkpoint)
                yield each
            if not page.next_page_token:
                return
            asked.page_token = page.next_page_token

    async def continues(self, old: Checkpoint, note: str, *, verifier_keys: Sequence[str]) -> Checkpoint:
        """Return the checkpoint in `note`, once it is proved that it continues `old`, which the caller kept.

        Raises:
            CheckpointInvalidError, ProofInvalidError, ByokError: As `entries`; a log that was rolled back or edited
                has no such proof.
        """
        new = open_checkpoint(note, verifier_keys, origin=old.origin)
        proof: Sequence[bytes] = ()
        if 0 < old.size < new.size:
            request = audit_pb2.GetConsistencyProofRequest(old_size=old.size, new_size=new.size)
            proof = (await self._call(self._stub.GetConsistencyProof, request)).proof
        verify_consistency(
            old_size=old.size, old_root=old.root, new_size=new.size, new_root=new.root, proof=list(proof)
        )
        return new


def _check(each: audit_pb2.ProvedEntry, checkpoint: Checkpoint) -> None:
    # A leaf that was archived or forgotten is empty; then only its hash can be proved.
    if each.leaf and leaf_hash(each.leaf) != each.leaf_hash:
        raise ProofInvalidError("the leaf is not the one of the hash")
    verify_inclusion(
        leaf_hash=each.leaf_hash,
        index=each.entry.audit_index - 1,
        size=checkpoint.size,
        proof=list(each.inclusion_proof),
        root=checkpoint.root,
    )

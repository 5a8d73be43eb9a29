"""AuditService over gRPC: every entry that is answered is proved, and nobody reads what is another's."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from byok.keyvault.v1 import audit_service_pb2, audit_service_pb2_grpc, lease_service_pb2
from byok.type.v1 import account_pb2, operation_pb2
from services.keyvault.tests.integration.test_bad_input import violations
from services.keyvault.tests.integration.vault import (
    agent_item,
    create_request,
    name,
    new_id,
    owner,
    refusal,
    revoke_request,
)
from transparency.checkpoints import Checkpoint, open_checkpoint
from transparency.merkle import leaf_hash, verify_consistency, verify_inclusion

if TYPE_CHECKING:
    from services.keyvault.tests.integration.vault import Vault

ORIGIN = "byok.keyvault/test"
LEASE, CREATED = audit_service_pb2.ENTRY_KIND_LEASE_GRANTED, audit_service_pb2.ENTRY_KIND_KEY_CREATED
STATE_CHANGED, REVOKED = audit_service_pb2.ENTRY_KIND_KEY_STATE_CHANGED, audit_service_pb2.ENTRY_KIND_KEY_REVOKED
BOUND = audit_service_pb2.ENTRY_KIND_AGENT_BOUND


class Auditor:
    """A caller of AuditService who believes nothing but the verifier key."""

    def __init__(self, stub: Any, keys: list[str]) -> None:
        self.stub = stub
        self.keys = keys

    @classmethod
    async def of(cls, vault: Vault, role: str = "edge") -> Auditor:
        """Return one with the certificate of `role`."""
        stub: Any = audit_service_pb2_grpc.AuditServiceStub(await vault.channel(role))
        newest = await stub.GetCheckpoint(audit_service_pb2.GetCheckpointRequest())
        return cls(stub, list(newest.verifier_keys))

    def open(self, note: str) -> Checkpoint:
        """Open a checkpoint."""
        return open_checkpoint(note, self.keys, origin=ORIGIN)

    async def entries(self, key_id: str = "", **fields: Any) -> list[audit_service_pb2.Entry]:
        """List entries page by page, and verify every one."""
        usual: dict[str, Any] = {"acting_for": owner(), "key_id": key_id}
        request = audit_service_pb2.ListEntriesRequest(**(usual | fields))
        found = []
        while True:
            page = await self.stub.ListEntries(request)
            checkpoint = self.open(page.checkpoint)
            for each in page.entries:
                assert leaf_hash(each.leaf) == each.leaf_hash
                verify_inclusion(
                    leaf_hash=each.leaf_hash,
                    index=each.entry.audit_index - 1,
                    size=checkpoint.size,
                    proof=list(each.inclusion_proof),
                    root=checkpoint.root,
                )
                found.append(each.entry)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def feed(self, after: int = 0, **fields: Any) -> audit_service_pb2.ReadFeedResponse:
        """Read the feed without waiting, and verify what comes with it."""
        request = audit_service_pb2.ReadFeedRequest(after_index=after, no_wait=True, **fields)
        page: audit_service_pb2.ReadFeedResponse = await self.stub.ReadFeed(request)
        return page


def kinds(entries: list[audit_service_pb2.Entry]) -> list[int]:
    """Return the kinds of entries."""
    return [each.kind for each in entries]


async def lease(vault: Vault, times: int = 1) -> list[str]:
    """Lease the owner's key, and return the lease ids."""
    router = await vault.router()
    ids = []
    for _ in range(times):
        (result,) = (await router.acquire(agent_item())).results
        ids.append(result.lease.lease_id)
    return ids


async def test_an_owner_lists_every_lease_of_a_key_with_proofs(vault: Vault) -> None:
    """Creation, validation and each lease with its id and operation, oldest first, all proved."""
    await vault.bind()
    key = await vault.working_key()
    leases = await lease(vault, 5)
    auditor = await Auditor.of(vault)
    entries = await auditor.entries(key.key_id)
    assert kinds(entries)[0] == CREATED
    assert STATE_CHANGED in kinds(entries)
    granted = [each for each in entries if each.kind == LEASE and each.agent_id]
    assert [each.lease_id for each in granted] == leases
    assert {each.operation for each in granted} == {operation_pb2.OPERATION_GUARDRAIL_EVALUATION}
    assert {each.key_id for each in entries} == {key.key_id}
    assert [each.audit_index for each in entries] == sorted(each.audit_index for each in entries)


async def test_pages_are_bound_to_their_filter(vault: Vault) -> None:
    """Pages put together are the whole list, in either direction; a token of one listing is none of another."""
    await vault.bind()
    key = await vault.working_key()
    await lease(vault, 7)
    auditor = await Auditor.of(vault)
    whole = await auditor.entries(key.key_id)
    assert await auditor.entries(key.key_id, page_size=3) == whole
    assert await auditor.entries(key.key_id, page_size=2, newest_first=True) == whole[::-1]
    of_kind = [each for each in whole if each.kind == LEASE]
    assert await auditor.entries(key.key_id, page_size=2, kinds=[LEASE]) == of_kind
    request = audit_service_pb2.ListEntriesRequest(acting_for=owner(), key_id=key.key_id, page_size=2)
    token = (await auditor.stub.ListEntries(request)).next_page_token
    for change in ({"newest_first": True}, {"kinds": [LEASE]}, {"end_time": datetime(2030, 1, 1, tzinfo=UTC)}):
        other = audit_service_pb2.ListEntriesRequest(
            acting_for=owner(),
            key_id=key.key_id,
            page_token=token,
            **change,
        )
        assert await violations(auditor.stub.ListEntries(other)) == {"page_token": "PAGE_TOKEN_INVALID"}


async def test_entries_are_found_by_time(vault: Vault) -> None:
    """From a time, up to a time; also when the clocks of replicas were apart."""
    await vault.bind()
    key = await vault.working_key()
    await lease(vault, 3)
    auditor = await Auditor.of(vault)
    whole = await auditor.entries(key.key_id)
    middle = whole[len(whole) // 2].time.ToDatetime(tzinfo=UTC)
    earlier = [each for each in whole if each.time.ToDatetime(tzinfo=UTC) < middle]
    later = [each for each in whole if each.time.ToDatetime(tzinfo=UTC) >= middle]
    assert earlier
    assert later
    for newest_first in (False, True):
        order = -1 if newest_first else 1
        usual: dict[str, Any] = {"newest_first": newest_first, "page_size": 2}
        assert await auditor.entries(key.key_id, end_time=middle, **usual) == earlier[::order]
        assert await auditor.entries(key.key_id, start_time=middle, **usual) == later[::order]
        past = middle - timedelta(days=1)
        assert await auditor.entries(key.key_id, end_time=past, **usual) == []
        assert await auditor.entries(key.key_id, start_time=past, **usual) == whole[::order]


async def test_another_owners_key_is_not_found(vault: Vault) -> None:
    """Neither another owner's entries nor their existence, nor those of an agent or of the whole log, can be read."""
    await vault.bind()
    key = await vault.working_key()
    auditor = await Auditor.of(vault)
    stranger = owner("owner-2")
    request = audit_service_pb2.ListEntriesRequest(acting_for=stranger, key_id=key.key_id)
    assert (await refusal(auditor.stub.ListEntries(request))).reason == "PROVIDER_KEY_NOT_FOUND"
    for agent_id in ("agent-1", ""):
        request = audit_service_pb2.ListEntriesRequest(acting_for=owner(), agent_id=agent_id)
        assert (await refusal(auditor.stub.ListEntries(request))).code == grpc.StatusCode.INVALID_ARGUMENT
    request = audit_service_pb2.ListEntriesRequest(acting_for=account_pb2.Principal(operator_id="op"))
    assert (await refusal(auditor.stub.ListEntries(request))).code == grpc.StatusCode.PERMISSION_DENIED


async def test_an_operator_reads_the_whole_log(vault: Vault) -> None:
    """All entries, those of an agent, and those of anybody's key."""
    await vault.bind()
    key = await vault.working_key()
    operator = await Auditor.of(vault, "operator")
    acting_for = account_pb2.Principal(operator_id="op")
    whole = await operator.entries(acting_for=acting_for)
    assert [each.audit_index for each in whole] == list(range(1, len(whole) + 1))
    assert kinds(await operator.entries(acting_for=acting_for, agent_id="agent-1")) == [BOUND]
    assert CREATED in kinds(await operator.entries(key.key_id, acting_for=acting_for))


async def test_an_edited_column_shows_no_owner_what_is_anothers(vault: Vault) -> None:
    """Entries that SQL moved under another key are refused, not shown; without the forgery they are not there."""
    await vault.bind()
    await vault.bind("agent-2", "owner-2")
    mine, theirs = await vault.working_key(), await vault.working_key(acting_for=owner("owner-2"))
    auditor = await Auditor.of(vault)
    assert theirs.key_id not in {each.key_id for each in await auditor.entries(mine.key_id)}
    await vault.forge(
        "UPDATE audit_entries SET subject = $1 WHERE subject = $2", f"key/{mine.key_id}", f"key/{theirs.key_id}"
    )
    request = audit_service_pb2.ListEntriesRequest(acting_for=owner(), key_id=mine.key_id)
    error = await refusal(auditor.stub.ListEntries(request))
    assert (error.code, error.reason) == (grpc.StatusCode.DATA_LOSS, "AUDIT_LOG_CORRUPT")


async def test_an_entry_that_was_edited_after_it_was_signed_is_refused(vault: Vault) -> None:
    """An edited leaf, also with its hash edited to fit, does not lead to the root that was signed."""
    await vault.bind()
    key = await vault.working_key()
    auditor = await Auditor.of(vault)
    index = (await auditor.entries(key.key_id))[-1].audit_index
    (row,) = await vault.sql("SELECT leaf FROM audit_entries WHERE audit_index = $1", index)
    edited = row["leaf"].replace(b"edge", b"edgy").replace(b"router", b"rooter")
    assert edited != row["leaf"]
    update = "UPDATE audit_entries SET leaf = $2, leaf_hash = $3 WHERE audit_index = $1"
    for digest in (leaf_hash(row["leaf"]), leaf_hash(edited)):
        await vault.forge(update, index, edited, digest)
        request = audit_service_pb2.ListEntriesRequest(acting_for=owner(), key_id=key.key_id)
        assert (await refusal(auditor.stub.ListEntries(request))).reason == "AUDIT_LOG_CORRUPT"
    await vault.forge(update, index, row["leaf"], leaf_hash(row["leaf"]))
    assert (await auditor.entries(key.key_id))[-1].audit_index == index


async def test_proofs_are_given_for_any_entry_and_any_size(vault: Vault) -> None:
    """Inclusion in every size that the log has had, and consistency between every two."""
    await vault.bind()
    await vault.working_key()
    await lease(vault, 3)
    auditor = await Auditor.of(vault)
    newest = auditor.open((await auditor.stub.GetCheckpoint(audit_service_pb2.GetCheckpointRequest())).checkpoint)
    (head,) = await vault.sql("SELECT last_index FROM audit_head")
    covering = audit_service_pb2.GetCheckpointRequest(covering_index=head["last_index"])
    newest = auditor.open((await auditor.stub.GetCheckpoint(covering)).checkpoint)
    assert newest.size >= head["last_index"] > 5
    roots = {}
    for size in range(1, newest.size + 1):
        request = audit_service_pb2.GetInclusionProofRequest(audit_index=1, tree_size=size)
        roots[size] = (await auditor.stub.GetInclusionProof(request)).root_hash
        for index in {1, size // 2 or 1, size}:
            request = audit_service_pb2.GetInclusionProofRequest(audit_index=index, tree_size=size)
            proved = await auditor.stub.GetInclusionProof(request)
            verify_inclusion(
                leaf_hash=proved.leaf_hash, index=index - 1, size=size, proof=list(proved.proof), root=roots[size]
            )
    assert roots[newest.size] == newest.root
    for old in range(1, newest.size + 1):
        grown = await auditor.stub.GetConsistencyProof(audit_service_pb2.GetConsistencyProofRequest(old_size=old))
        assert (grown.new_size, grown.new_root_hash) == (newest.size, newest.root)
        verify_consistency(
            old_size=old, old_root=roots[old], new_size=newest.size, new_root=newest.root, proof=list(grown.proof)
        )


async def test_what_the_log_does_not_have_is_told(vault: Vault) -> None:
    """An index or a size beyond the log, and a missing one, are refused with a reason."""
    stub = (await Auditor.of(vault)).stub
    far = 10**15
    inclusion, consistency = audit_service_pb2.GetInclusionProofRequest, audit_service_pb2.GetConsistencyProofRequest
    await vault.bind()
    error = await refusal(stub.GetInclusionProof(inclusion(audit_index=far)))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "AUDIT_ENTRY_NOT_FOUND")
    for call in (
        stub.GetInclusionProof(inclusion()),
        stub.GetInclusionProof(inclusion(audit_index=-1)),
        stub.GetInclusionProof(inclusion(audit_index=1, tree_size=far)),
        stub.GetInclusionProof(inclusion(audit_index=2, tree_size=1)),
        stub.GetConsistencyProof(consistency()),
        stub.GetConsistencyProof(consistency(old_size=far)),
        stub.GetConsistencyProof(consistency(old_size=1, new_size=far)),
        stub.GetConsistencyProof(consistency(old_size=2, new_size=1)),
        stub.GetCheckpoint(audit_service_pb2.GetCheckpointRequest(covering_index=far)),
        stub.GetCheckpoint(audit_service_pb2.GetCheckpointRequest(covering_index=-1)),
    ):
        assert (await refusal(call)).code == grpc.StatusCode.INVALID_ARGUMENT


async def test_an_empty_log_has_a_checkpoint(vault: Vault) -> None:
    """Nothing happened yet, and that is signed too."""
    auditor = await Auditor.of(vault, "operator")
    (head,) = await vault.sql("SELECT last_index FROM audit_head")
    note = (await auditor.stub.GetCheckpoint(audit_service_pb2.GetCheckpointRequest())).checkpoint
    assert auditor.open(note).size == head["last_index"]
    assert await auditor.entries(acting_for=account_pb2.Principal(operator_id="op"), kinds=[LEASE]) == []


async def test_the_feed_tells_owners_affairs_with_a_checkpoint_that_covers_them(vault: Vault) -> None:
    """Creation, validation and the revocation are told; a lease and a binding are not."""
    (start,) = await vault.sql("SELECT last_index FROM audit_head")
    await vault.bind()
    key = await vault.working_key()
    await lease(vault, 2)
    await (await vault.keys()).RevokeKey(revoke_request(key.key_id))
    witness = await Auditor.of(vault, "metering")
    page = await witness.feed(start["last_index"])
    told = [(each.kind, each.key_id) for each in page.entries]
    assert told == [(CREATED, key.key_id), (STATE_CHANGED, key.key_id), (REVOKED, key.key_id)]
    checkpoint = witness.open(page.checkpoint)
    assert checkpoint.size >= page.next_after_index > page.entries[-1].audit_index - 1
    assert not page.is_behind_witness
    assert list((await witness.feed(page.next_after_index)).entries) == []
    first = await witness.feed(start["last_index"], page_size=1)
    assert (len(first.entries), first.next_after_index) == (1, first.entries[0].audit_index)
    second = await witness.feed(first.next_after_index, page_size=1)
    assert [each.kind for each in second.entries] == [STATE_CHANGED]


async def test_the_feed_tells_a_change_of_state_and_no_cool_down(vault: Vault) -> None:
    """A throttled key rests, and nobody is told; a key without credit is in another state, and its owner is."""
    await vault.bind()
    key = await vault.working_key()
    witness, edge = await Auditor.of(vault, "metering"), await Auditor.of(vault)
    router = await vault.router()
    (result,) = (await router.acquire(agent_item())).results
    for kind, told in (
        (lease_service_pb2.OUTCOME_KIND_RATE_LIMITED, []),
        (lease_service_pb2.OUTCOME_KIND_NO_CREDIT, [STATE_CHANGED]),
    ):
        after = (await witness.feed()).next_after_index
        outcome = lease_service_pb2.LeaseOutcome(
            lease_id=result.lease.lease_id, key_id=key.key_id, key_version=result.lease.key_version, kind=kind
        )
        request = lease_service_pb2.ReportOutcomesRequest(holder=router.holder, outcomes=[outcome])
        await router.leases.ReportOutcomes(request)
        assert [each.audit_index for each in await edge.entries(key.key_id)][-1] > after
        page = await witness.feed(after)
        assert [each.kind for each in page.entries] == told
        assert page.next_after_index > after


async def test_the_feed_proves_that_it_continues_what_the_witness_holds(vault: Vault) -> None:
    """From any size that was witnessed; and a log that is shorter says so."""
    await vault.bind()
    witness = await Auditor.of(vault, "metering")
    held = witness.open((await witness.feed()).checkpoint)
    for _ in range(3):
        await vault.working_key()
        page = await witness.feed(witnessed_size=held.size)
        new = witness.open(page.checkpoint)
        assert new.size > held.size
        verify_consistency(
            old_size=held.size,
            old_root=held.root,
            new_size=new.size,
            new_root=new.root,
            proof=list(page.consistency_proof),
        )
        held = new
    same = await witness.feed(witnessed_size=held.size)
    assert (list(same.consistency_proof), witness.open(same.checkpoint)) == ([], held)
    behind = await witness.feed(witnessed_size=held.size + 1000)
    assert behind.is_behind_witness
    assert witness.open(behind.checkpoint).size <= held.size


async def test_a_reader_of_the_feed_is_woken_by_news(vault: Vault) -> None:
    """A waiting call answers when something happens, long before its patience ends."""
    witness = await Auditor.of(vault, "metering")
    await vault.bind()
    after = (await witness.feed()).next_after_index
    request = audit_service_pb2.ReadFeedRequest(after_index=after)
    waiting = asyncio.ensure_future(witness.stub.ReadFeed(request, timeout=20))
    await asyncio.sleep(0.3)
    assert not waiting.done()
    loop = asyncio.get_running_loop()
    created = await (await vault.keys()).CreateKey(create_request())
    start = loop.time()
    page = await waiting
    assert loop.time() - start < 2
    assert [each.key_id for each in page.entries] == [created.key.key_id]


async def test_a_reader_of_the_feed_hears_in_time_that_there_is_no_news(vault: Vault) -> None:
    """The wait is cut to the caller's deadline, and what was looked at is said."""
    witness = await Auditor.of(vault, "metering")
    after = (await witness.feed()).next_after_index
    await vault.bind(name("agent"))
    request = audit_service_pb2.ReadFeedRequest(after_index=after)
    page = await witness.stub.ReadFeed(request, timeout=1.5)
    assert (list(page.entries), page.next_after_index > after) == ([], True)


async def test_a_bad_question_to_the_feed_is_refused_by_field(vault: Vault) -> None:
    """Sizes and indexes out of range."""
    witness = await Auditor.of(vault, "metering")
    for fields in ({"page_size": 1001}, {"page_size": -1}, {"after_index": -1}, {"witnessed_size": -1}):
        request = audit_service_pb2.ReadFeedRequest(no_wait=True, **fields)
        assert set(await violations(witness.stub.ReadFeed(request))) == set(fields)
    assert (await refusal(witness.feed(10**15))).code == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("field", ["page_size", "kinds", "page_token", "key_id"])
async def test_a_bad_listing_is_refused_by_field(vault: Vault, field: str) -> None:
    """Each field that can be wrong, by its name."""
    auditor = await Auditor.of(vault)
    bad: dict[str, Any] = {"page_size": 1001, "kinds": [99], "page_token": "x", "key_id": "a b"}
    usual: dict[str, Any] = {"acting_for": owner(), "key_id": new_id()}
    request = audit_service_pb2.ListEntriesRequest(**(usual | {field: bad[field]}))
    (found,) = await violations(auditor.stub.ListEntries(request))
    assert found.startswith(field)

"""An owner sees every use of their key: each lease in KeyVault's log, proved, and its calls in the ledger."""

from byok.keyvault.v1 import audit_service_pb2
from byok.metering.v1 import usage_service_pb2
from byok_client.client import ByokClient, Targets
from testkit.stack.customer import Customer, Suite
from transparency.checkpoints import open_checkpoint

LEASES = [audit_service_pb2.ENTRY_KIND_LEASE_GRANTED]


async def test_every_lease_of_a_key_is_proved_and_leads_to_its_calls(suite: Suite, customer: Customer) -> None:
    """No call without its lease, no lease of another's; and a later checkpoint continues the one that was kept."""
    key = await customer.set_up("openai")
    for _ in range(3):
        await customer.evaluate()
    await customer.embed(["bread", "butter"])
    # Two probes of the validation, three evaluations and an embedding.
    ledger = {each.entry_id: each for each in await customer.wait_for_entries(6)}

    targets = Targets(keyvault=suite.stack.target("keyvault"), metering=suite.stack.target("metering"),
                      server_name="localhost")  # fmt: skip
    async with ByokClient(targets, suite.stack.client_tls("edge")) as client:
        first = await client.audit.checkpoint()
        pinned = list(first.verifier_keys)
        kept = open_checkpoint(first.checkpoint, pinned)
        request = audit_service_pb2.ListEntriesRequest(
            acting_for=customer.principal, key_id=key.key_id, kinds=LEASES, page_size=1
        )
        leases = [each.entry async for each in client.audit.entries(request, verifier_keys=pinned)]
        assert {each.key_id for each in leases} == {key.key_id}
        assert len({each.lease_id for each in leases}) == len(leases) >= 2

        calls: dict[str, str] = {}
        for lease in leases:
            query = usage_service_pb2.ListLedgerEntriesRequest(
                account=customer.account, acting_for=customer.principal, lease_id=lease.lease_id
            )
            for entry in (await client.usage.entries(query)).entries:
                assert (entry.lease_id, entry.key_id) == (lease.lease_id, key.key_id)
                calls[entry.entry_id] = entry.lease_id
        assert calls == {entry_id: entry.lease_id for entry_id, entry in ledger.items()}

        await customer.evaluate()
        later = await client.audit.checkpoint(covering_index=max(each.audit_index for each in leases))
        assert (await client.audit.continues(kept, later.checkpoint, verifier_keys=pinned)).size >= kept.size

"""What an operator sees of the witness, and their word that a restore of KeyVault's database was deliberate."""

from metering.domain.custody import AcceptedRestore, CustodyRecord, CustodyState, opened, signing_keys
from metering.domain.errors import DependencyUnavailableError
from metering.ports import CustodyLog, CustodyWitnesses
from metering.usecases.witness_custody import WitnessCustody
from servicekit.errors import FieldViolation, InvalidArgumentError
from transparency.errors import CheckpointInvalidError


class GetCustodyWitness:
    """Reads the record."""

    def __init__(self, witness: WitnessCustody) -> None:
        """Use the replica's own witness, whose gate follows what is read."""
        self._witness = witness

    async def __call__(self) -> CustodyRecord:
        """Return what all replicas know.

        Raises:
            DependencyUnavailableError: Postgres cannot be reached.
        """
        return await self._witness.look()


class AcceptCustodyRestore:
    """Takes KeyVault's log as it is now for the new start."""

    def __init__(
        self,
        *,
        witness: WitnessCustody,
        witnesses: CustodyWitnesses,
        log: CustodyLog,
        pinned_keys: tuple[str, ...] = (),
    ) -> None:
        """Use ports; `pinned_keys`, if any, are the only ones trusted."""
        self._witness = witness
        self._witnesses = witnesses
        self._log = log
        self._pinned = pinned_keys

    async def __call__(self, restore: AcceptedRestore) -> CustodyRecord:
        """Accept, and admit again; the same request again changes nothing.

        Raises:
            InvalidArgumentError: Nothing is rolled back, or the operator has seen another witness than this one.
            DependencyUnavailableError: KeyVault gives no checkpoint under a key that may be trusted, or it or Postgres
                cannot be reached.
        """
        if not await self._witnesses.is_accepted(restore.request_id):
            record = await self._witnesses.read()
            refusal = _refusal(record, restore) or await self._take(record, restore)
            # The same request may have been heard meanwhile, through another replica.
            if refusal is not None and not await self._witnesses.is_accepted(restore.request_id):
                raise refusal
        return await self._witness.look()

    async def _take(self, record: CustodyRecord, restore: AcceptedRestore) -> InvalidArgumentError | None:
        listed = await self._log.newest()
        # An operator's word also renews the trust on first use: whoever pins keys keeps that from happening.
        keys = self._pinned or signing_keys(listed)
        try:
            accepted = opened(listed.checkpoint, keys)
        except CheckpointInvalidError as error:
            raise DependencyUnavailableError(
                "KeyVault's newest checkpoint is not signed by a key that may be trusted. If its key was replaced on "
                "purpose, pin the new one in custody.verifier_keys.",
                dependency="keyvault",
            ) from error
        if await self._witnesses.accept(record, restore, accepted=accepted, verifier_keys=keys):
            return None
        return _refused("WITNESS_MOVED", "must be what GetCustodyWitness answers; it has changed meanwhile")


def _refusal(record: CustodyRecord, restore: AcceptedRestore) -> InvalidArgumentError | None:
    if record.state is not CustodyState.ROLLED_BACK:
        return _refused("NOT_ROLLED_BACK", "must be of a log that was rolled back; this one is not")
    if restore.witnessed_size != record.size:
        return _refused("WITNESS_MOVED", f"must be what GetCustodyWitness answers, which is {record.size}")
    return None


def _refused(reason: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        violations=[FieldViolation(field="witnessed_size", reason=reason, description=description)]
    )

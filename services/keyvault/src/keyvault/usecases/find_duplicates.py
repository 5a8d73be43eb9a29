"""FindDuplicates: other keys with the same secret, by its keyed HMAC; no secret is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from keyvault.domain.errors import ProviderKeyNotFoundError

if TYPE_CHECKING:
    from keyvault.domain.ownership import Principal
    from keyvault.domain.provider_keys import StoredKey
    from keyvault.ports import ProviderKeyStore, SecretStore
    from keyvault.usecases.change_provider_keys import ProviderKeys
    from keyvault.usecases.verify_rows import VerifyRows

FOUND_MAX: Final = 100


class FindDuplicates:
    """Looks among the keys of one account; an operator looks among all."""

    def __init__(
        self, *, store: ProviderKeyStore, secrets: SecretStore, keys: ProviderKeys, verify: VerifyRows
    ) -> None:
        """Look in `secrets`."""
        self._store = store
        self._secrets = secrets
        self._keys = keys
        self._verify = verify

    async def __call__(self, provider_key_id: str, acting_for: Principal) -> list[StoredKey]:
        """Return the other keys, at most `FOUND_MAX`, oldest first.

        The HMAC is not authenticated: whoever edits it in the database can hide an equal or make one up, but what an
        owner is shown is authenticated to be theirs.

        Raises:
            ProviderKeyNotFoundError: there is no such key, or it is another owner's.
            ProviderKeyRevokedError: the key is revoked, and nothing is kept of its secret.
            AuthorityForgedError: a row was not written by this service as it stands.
        """
        stored = await self._looked_for(provider_key_id, acting_for)
        stored.key.ensure_not_revoked()
        owned_by = stored.key.holder.owned_by
        among = None if acting_for.operator_id else owned_by
        rows = await self._secrets.find_equal(provider_key_id, owned_by=among, limit=FOUND_MAX)
        equals = [await self._verify.key(row) for row in rows]
        return [each for each in equals if among is None or each.key.holder.owned_by == among]

    async def _looked_for(self, provider_key_id: str, acting_for: Principal) -> StoredKey:
        if not acting_for.operator_id:
            return await self._keys.owned(provider_key_id, acting_for)
        row = await self._store.get(provider_key_id)
        if row is None:
            raise ProviderKeyNotFoundError("there is no such provider key", provider_key_id=provider_key_id)
        return await self._verify.key(row)

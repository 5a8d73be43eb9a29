"""KeyService and its use cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from byok.keyvault.v1 import key_service_pb2, key_service_pb2_grpc
from keyvault.adapters.postgres.erasures import PostgresErasures
from keyvault.adapters.postgres.secrets import PostgresSecrets
from keyvault.api.key_servicer import KeyServicer, KeyUseCases
from keyvault.usecases.agent_bindings import AgentBindings
from keyvault.usecases.bind_agent import BindAgent
from keyvault.usecases.change_shares import KeyShares, ShareKey, UnshareKey
from keyvault.usecases.check_base_url import CheckBaseUrl
from keyvault.usecases.create_provider_key import CreateProviderKey, PrepareKey
from keyvault.usecases.erase_owner import EraseOwner, GetErasure
from keyvault.usecases.find_duplicates import FindDuplicates
from keyvault.usecases.list_shares import ListShares
from keyvault.usecases.open_submission import OpenSubmission
from keyvault.usecases.read_provider_keys import GetProviderKey, ListProviderKeys
from keyvault.usecases.replace_secret import ReplaceSecret
from keyvault.usecases.revoke_provider_key import RevokeProviderKey
from keyvault.usecases.update_provider_key import UpdateProviderKey
from keyvault.usecases.write_authority import WindowLimits, WriteBinding, WriteShare
from keyvault.wiring.base import await_watchers, provider_keys
from keyvault.wiring.health import revoke_erased
from servicekit.server import ServedService

if TYPE_CHECKING:
    from keyvault.usecases.change_provider_keys import ProviderKeys
    from keyvault.wiring.base import Base

DESCRIPTOR: Final = key_service_pb2.DESCRIPTOR.services_by_name["KeyService"]


def serve_keys(base: Base) -> ServedService:
    """Return the service, ready to be served."""
    return ServedService(
        key_service_pb2_grpc.add_KeyServiceServicer_to_server, KeyServicer(_usecases(base)), DESCRIPTOR.full_name
    )


def _usecases(base: Base) -> KeyUseCases:
    agents = AgentBindings(base.authority, base.verify)
    check_base_url = CheckBaseUrl(base.capabilities, base.settings.allowed_private_hosts)
    open_submission = OpenSubmission(base.keyring, base.capabilities)
    keys = provider_keys(base)
    shares = _shares(base, keys)
    return KeyUseCases(
        create=CreateProviderKey(
            prepare=PrepareKey(
                open_submission=open_submission, check_base_url=check_base_url, capabilities=base.capabilities
            ),
            keys=keys,
            store=base.authority,
            agents=agents,
            clock=base.clock,
            keys_per_account_max=base.settings.keys.per_account_max,
        ),
        get=GetProviderKey(keys),
        list=ListProviderKeys(store=base.authority, agents=agents, verify=base.verify),
        update=UpdateProviderKey(keys=keys, capabilities=base.capabilities, clock=base.clock),
        replace_secret=ReplaceSecret(
            keys=keys, open_submission=open_submission, check_base_url=check_base_url, clock=base.clock
        ),
        revoke=RevokeProviderKey(keys=keys, await_watchers=await_watchers(base), clock=base.clock),
        bind_agent=BindAgent(
            store=base.authority,
            agents=agents,
            verify=base.verify,
            write=WriteBinding(base.authority, base.keyring, WindowLimits()),
            keyring=base.keyring,
            clock=base.clock,
        ),
        erase_owner=EraseOwner(
            erasures=PostgresErasures(base.database, base.sealer),
            requests=base.authority,
            keyring=base.keyring,
            revoke=revoke_erased(base),
            await_watchers=await_watchers(base),
            clock=base.clock,
        ),
        get_erasure=GetErasure(PostgresErasures(base.database, base.sealer)),
        find_duplicates=FindDuplicates(
            store=base.authority, secrets=PostgresSecrets(base.database), keys=keys, verify=base.verify
        ),
        share=ShareKey(shares=shares, agents=agents, clock=base.clock),
        unshare=UnshareKey(shares=shares, await_watchers=await_watchers(base), clock=base.clock),
        list_shares=ListShares(store=base.shares_and_halts, shares=shares, verify=base.verify),
        clock=base.clock,
        keyring=base.keyring,
    )


def _shares(base: Base, keys: ProviderKeys) -> KeyShares:
    write = WriteShare(base.shares_and_halts, base.keyring, WindowLimits())
    return KeyShares(base.shares_and_halts, keys=keys, verify=base.verify, write=write, keyring=base.keyring)

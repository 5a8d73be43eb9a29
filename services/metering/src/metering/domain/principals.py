"""On whose behalf a call is made, and what that lets it see.

Memberships are asserted by the caller and only compared.
"""

import msgspec

from metering.domain.accounts import AccountKey, account_id, account_kind
from metering.domain.enums import AccountKind
from metering.domain.errors import AccountNotFoundError, AgentNotFoundError


class Principal(msgspec.Struct, frozen=True):
    """An owner, with the organizations that the caller says they are a member of; or an operator."""

    owner_id: str = ""
    operator_id: str = ""
    organization_ids: tuple[str, ...] = ()

    @property
    def is_operator(self) -> bool:
        """Tell whether it is an operator, who sees everything."""
        return bool(self.operator_id)


def ensure_may_see(principal: Principal, account: AccountKey) -> None:
    """Check that an account is the principal's.

    Raises:
        AccountNotFoundError: It is another's; whether it exists is not told.
    """
    if principal.is_operator:
        return
    identifier, kind = account_id(account), account_kind(account)
    if kind is AccountKind.OWNER and identifier == principal.owner_id:
        return
    if kind is AccountKind.ORGANIZATION and identifier in principal.organization_ids:
        return
    raise AccountNotFoundError("There is no such account of this principal.")


def ensure_is_owner(principal: Principal, owner_id: str, *, agent_id: str) -> None:
    """Check that an owner is the principal.

    Raises:
        AgentNotFoundError: It is another; whether the agent exists is not told.
    """
    if principal.is_operator or principal.owner_id == owner_id:
        return
    raise AgentNotFoundError("There is no such agent of this principal.", agent_id=agent_id)

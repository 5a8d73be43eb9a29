"""Whose a provider key is, and for whom it may be used.

The account that owns a key decides who pays; `Scope` decides for whom a lease may be taken. Both are fixed when the key
is created and are bound into its envelope, so no edit of a row moves a secret to another owner.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from servicekit.errors import FieldViolation, InvalidArgumentError

IDENTIFIER_CHARACTERS_MAX: Final = 128
_IDENTIFIER: Final = re.compile(r"[\x21-\x7e]{1,128}")


class Scope(enum.IntEnum):
    """For whom a key may be leased. The numbers are stored and bound into envelopes: never renumber."""

    AGENT = 1
    OWNER = 2
    ORGANIZATION = 3
    PLATFORM = 4


class AccountKind(enum.IntEnum):
    """What kind of party an account is. The numbers are stored and bound into envelopes: never renumber."""

    OWNER = 1
    ORGANIZATION = 2
    PLATFORM = 3


@dataclass(frozen=True, slots=True)
class Account:
    """A party that owns keys, is limited and pays. The platform has no id."""

    kind: AccountKind
    party_id: str = ""


PLATFORM: Final = Account(AccountKind.PLATFORM)


def owner_account(owner_id: str) -> Account:
    """Return the account of one owner."""
    return Account(AccountKind.OWNER, owner_id)


@dataclass(frozen=True, slots=True)
class Holder:
    """Ownership and scope of one key together."""

    scope: Scope
    owned_by: Account
    agent_id: str = ""


def organization_account(organization_id: str) -> Account:
    """Return the account of one organization."""
    return Account(AccountKind.ORGANIZATION, organization_id)


@dataclass(frozen=True, slots=True)
class Principal:
    """On whose behalf a call is made: one owner, or an operator, who acts for the platform.

    `organization_ids` are those that the caller asserts the owner to be a member of; it vouches for that.
    """

    owner_id: str = ""
    operator_id: str = ""
    organization_ids: frozenset[str] = frozenset()

    @property
    def account(self) -> Account:
        """Return the account whose keys this principal may see and change."""
        return PLATFORM if self.operator_id else owner_account(self.owner_id)

    def may_act_on(self, account: Account) -> bool:
        """Return whether what this account owns is this principal's to see and change."""
        if account.kind is AccountKind.ORGANIZATION:
            return account.party_id in self.organization_ids
        return account == self.account

    def acting_account(self, organization_id: str) -> Account:
        """Return the organization's account when one is named, else the principal's own.

        Raises:
            InvalidArgumentError: the caller does not assert the principal to be a member of the organization.
        """
        if not organization_id:
            return self.account
        account = organization_account(check_identifier("organization_id", organization_id))
        if not self.may_act_on(account):
            remedy = "Name the organization in acting_for.organization_ids too, if the owner is a member of it."
            raise _refused("organization_id", "NOT_A_MEMBER", remedy)
        return account

    @property
    def key(self) -> str:
        """Return what scopes a request id of this principal."""
        return f"operator:{self.operator_id}" if self.operator_id else f"owner:{self.owner_id}"


def check_holder(holder: Holder) -> Holder:
    """Return `holder` when it is one of the combinations that a rule of leasing covers.

    Raises:
        InvalidArgumentError: naming the field that does not fit and what to send instead.
    """
    if holder.owned_by.kind != _OWNED_BY[holder.scope]:
        remedy = (
            "Scope PLATFORM needs acting_for.operator_id, the scopes AGENT and OWNER need acting_for.owner_id alone, "
            "scope ORGANIZATION needs organization_id as well."
        )
        raise _refused("scope", "SCOPE_MISMATCH", remedy)
    if bool(holder.agent_id) != (holder.scope is Scope.AGENT):
        raise _refused("agent_id", "SCOPE_MISMATCH", "Name an agent for scope AGENT, and for no other scope.")
    return holder


def check_identifier(field: str, value: str) -> str:
    """Return `value` when it may be an opaque id of the platform: 1 to 128 printable ASCII characters, no spaces.

    Raises:
        InvalidArgumentError: naming `field` and what to send instead.
    """
    if not _IDENTIFIER.fullmatch(value):
        remedy = f"Send 1 to {IDENTIFIER_CHARACTERS_MAX} printable ASCII characters without spaces."
        raise _refused(field, "IDENTIFIER_INVALID", remedy)
    return value


def _refused(field: str, reason: str, description: str) -> InvalidArgumentError:
    return InvalidArgumentError(violations=[FieldViolation(field=field, reason=reason, description=description)])


_OWNED_BY: Final = {
    Scope.AGENT: AccountKind.OWNER,
    Scope.OWNER: AccountKind.OWNER,
    Scope.ORGANIZATION: AccountKind.ORGANIZATION,
    Scope.PLATFORM: AccountKind.PLATFORM,
}

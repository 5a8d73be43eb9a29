"""Who pays, decided before the call, and which rule allowed it.

The payer follows from whose key is used. Only the platform's own money needs permission: its policy, which is data,
says for which operations and in which phase it pays. Every decision names its rule.
"""

from enum import IntEnum
from typing import Final

import msgspec

from metering.domain.enums import Operation, Payer, PlatformCause
from metering.domain.errors import PlatformNotPayingError

_NO_KEY_CAUSES: Final = frozenset(
    {PlatformCause.NO_KEY, PlatformCause.NO_KEY_FOR_OPERATION, PlatformCause.NO_USABLE_KEY}
)


class Phase(IntEnum):
    """How far the move from platform-paid to owner-paid has come."""

    OPTIONAL = 1
    ENCOURAGED = 2
    REQUIRED = 3
    SUNSET = 4


class Policy(msgspec.Struct, frozen=True):
    """What the platform pays for."""

    phase: Phase = Phase.REQUIRED
    pays_embedding_fallback: bool = False
    pays_evidence: bool = False
    pays_safety_escalation: bool = False
    pays_caller_requests: bool = False


def decide_payer(policy: Policy, *, payer: Payer, operation: Operation, cause: PlatformCause | None) -> str:
    """Return the rule that lets this payer pay.

    Raises:
        PlatformNotPayingError: The platform is asked to pay and its policy does not.
    """
    if payer is Payer.OWNER:
        return "owner_key"
    if payer is Payer.ORGANIZATION:
        return "organization_key"
    rule = _platform_rule(policy, operation=operation, cause=cause)
    if rule is not None:
        return rule
    named = cause.name if cause is not None else "UNSPECIFIED"
    raise PlatformNotPayingError(
        f"The platform does not pay for {operation.name} ({named}): add a provider key that can do it.",
        cause=named,
        rule=f"phase_{policy.phase.name.lower()}",
    )


def _platform_rule(policy: Policy, *, operation: Operation, cause: PlatformCause | None) -> str | None:
    # A key is validated on its owner's money in every phase: the test call is what proves that it is theirs. Router
    # calls the test of one of the platform's own keys the platform's operation.
    if operation is Operation.KEY_VALIDATION:
        return "platform_key" if cause is PlatformCause.OPERATION_IS_PLATFORMS else None
    own_operations = {
        Operation.SAFETY_ESCALATION: ("platform_safety_escalation", policy.pays_safety_escalation),
        Operation.EVIDENCE_VERIFICATION: ("platform_evidence", policy.pays_evidence),
    }
    if operation in own_operations:
        rule, is_paid = own_operations[operation]
        return rule if is_paid else None
    if cause is PlatformCause.CALLER_REQUESTED:
        # Work that a service of the platform attributes to the platform itself, whatever the phase of its agents.
        return "platform_caller_requested" if policy.pays_caller_requests else None
    if cause not in _NO_KEY_CAUSES:
        return None
    if operation is Operation.EMBEDDING_GENERATION and policy.pays_embedding_fallback:
        return "platform_embedding_fallback"
    if policy.phase in {Phase.OPTIONAL, Phase.ENCOURAGED}:
        return f"phase_{policy.phase.name.lower()}"
    return None

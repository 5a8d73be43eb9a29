"""Plans as data: what an account is entitled to."""

import msgspec


class Plan(msgspec.Struct, frozen=True):
    """A plan. `agents_max` is None where any number of agents may be registered."""

    name: str
    priority: int
    entitlements: tuple[str, ...]
    agents_max: int | None


class PlanTerms(msgspec.Struct, frozen=True, array_like=True):
    """The part of a plan that every grant carries, as Redis keeps it beside the account's limits."""

    name: str
    priority: int
    entitlements: tuple[str, ...]


def terms_of(plan: Plan) -> PlanTerms:
    """Return what grants say of a plan."""
    return PlanTerms(plan.name, plan.priority, plan.entitlements)

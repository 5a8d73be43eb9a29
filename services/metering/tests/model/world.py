"""The world of a history: processes, stores, and what the auditor knows of each reservation.

Importable by tests as `services.metering.tests.model.world`.
"""

import random
from dataclasses import dataclass, field

from services.metering.tests.model.rules import Rule, Rules
from services.metering.tests.model.stores import Postgres, Record, Redis, Reply, Rid

LICENCE_LIFE = 6
BASE = 10**15
STEPS = 110
# Ids older than this may be forgotten, and are looked up in Postgres.
HORIZON = 6


class BrokenPromiseError(AssertionError):
    """The protocol did what it must not."""


@dataclass
class Replica:
    """One Metering process."""

    name: int
    redis: Redis
    licence_run: int = -1
    licence_generation: int = -1
    until: int = -1
    is_cut_off: bool = False
    batch: tuple[list[tuple[int, Record]], int, int, Redis] | None = None
    fold: tuple[int, int, dict[int, int]] | None = None


@dataclass
class Job:
    """One operation on one Router."""

    request: str
    call: int = 0
    state: str = "ASKING"
    rid: Rid | None = None
    amount: int = 0
    used: int = 0
    window: int = 0
    position: tuple[int, int] | None = None


@dataclass
class Router:
    """One Router process; its journal is its jobs that are SPENT and not durable."""

    name: str
    jobs: list[Job] = field(default_factory=list)


@dataclass
class Truth:
    """What the auditor knows of a reservation that a Router took."""

    holder: str
    amount: int
    window: int
    spent: int | None = None
    is_dead: bool = False
    is_lost: bool = False
    settle_lost: bool = False
    is_settled: bool = False
    # When the settlement was applied, in scripts run.
    settled_at: int | None = None

    def exposure(self) -> int:
        """Return the least that it certainly counts."""
        if self.is_lost and not self.is_settled:
            return 0
        if self.spent is not None:
            return self.spent
        return 0 if self.is_dead else self.amount


Message = tuple[str, str, Job]


class World:
    """Everything that there is, moved by a seeded generator."""

    def __init__(
        self, seed: int, rules: Rules, *, often: frozenset[str] = frozenset(), never: frozenset[str] = frozenset()
    ) -> None:
        """Begin with everything well; `often` and `never` name actions that this history favours and forgoes."""
        self.often = often
        self.never = never
        self.random = random.Random(seed)
        self.rules = rules
        self.time = 5
        self.redis = Redis(0, rules)
        self.snapshot = self.redis.copy(0)
        self.runs = 0
        self.births: dict[str, int] = {}
        self.postgres = Postgres(rules, cap=4 * BASE)
        self.replicas = [Replica(number, self.redis) for number in range(2)]
        self.routers = [Router(f"r{number}") for number in range(2)]
        self.incarnations = 2
        self.requests = 0
        self.network: list[Message] = []
        self.replies: list[tuple[Replica, str, Job, Reply, int, int, int]] = []
        self.scripts = 0
        self.applied: list[tuple[int, int]] = []
        self.limits: list[tuple[int, int]] = []
        self.acked = 1
        self.caps = {1: self.postgres.cap}
        self.truth: dict[Rid, Truth] = {}
        self.given_up: set[tuple[str, str, int]] = set()
        self.wiped_tombstones: set[str] = set()
        self.given_twice: set[Rid] = set()

    def _may_use(self, replica: Replica, *, is_reserve: bool) -> bool:
        if replica.redis.run_id < 0:
            replica.redis = self.redis
        if self.rules.has(Rule.IDENTITY_IS_CHECKED) and replica.redis.run_id != replica.licence_run:
            return False
        if replica.redis.generation != replica.licence_generation:
            return False
        return not is_reserve or self.time < replica.until

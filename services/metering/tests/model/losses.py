"""The flush, the loss of Redis and the rebuild, and what Redis forgets on purpose.

Importable by tests as `services.metering.tests.model.losses`.
"""

from services.metering.tests.model.rules import Rule
from services.metering.tests.model.stores import Attempt, Hold, Record, Redis, Rid
from services.metering.tests.model.world import HORIZON, LICENCE_LIFE, Replica, World


class Losses(World):
    """A world whose Redis can die, roll back, split and forget."""

    def read_batch(self) -> None:
        """Read what is in the outbox and not in the ledger."""
        replica = self.random.choice(self.replicas)
        if replica.is_cut_off or self.postgres.rebuilder is not None:
            return
        if not self._may_use(replica, is_reserve=False):
            return
        redis, start = replica.redis, self.postgres.sequence
        batch = [(sequence, record) for sequence, record in sorted(redis.outbox.items()) if sequence > start]
        replica.batch = (batch, redis.generation, start, redis)
        if not self.rules.has(Rule.TRIM_AFTER_COMMIT):
            self._trim(redis, batch)

    def commit_batch(self) -> None:
        """Write what was read, perhaps long ago."""
        replica = self.random.choice(self.replicas)
        if replica.batch is None or replica.is_cut_off:
            return
        batch, generation, start, redis = replica.batch
        replica.batch = None
        if self.postgres.commit(batch, generation=generation, start=start):
            self._trim(redis, batch)

    def _trim(self, redis: Redis, batch: list[tuple[int, Record]]) -> None:
        for sequence, _ in batch:
            redis.outbox.pop(sequence, None)

    def save_snapshot(self) -> None:
        """Let Redis reach its disk."""
        self.snapshot = self.redis.copy(self.redis.run_id)

    def restart_redis(self) -> None:
        """Restart Redis from what its disk has."""
        self._replace()
        for replica in self.replicas:
            replica.redis = self.redis

    def split_redis(self) -> None:
        """Promote a copy while the old one goes on for whoever is connected to it."""
        self._replace()

    def _replace(self) -> None:
        self.runs += 1
        self.redis = self.snapshot.copy(self.runs)
        self.snapshot = self.redis.copy(self.runs)

    def cut_off(self) -> None:
        """Cut a replica off from Postgres, or let it back."""
        replica = self.random.choice(self.replicas)
        replica.is_cut_off = not replica.is_cut_off

    def kill_replica(self) -> None:
        """End a replica; another takes its place."""
        replica = self.random.choice(self.replicas)
        self.replies = [each for each in self.replies if each[0] is not replica]
        self.replicas[replica.name] = Replica(replica.name, self.redis)

    def renew(self) -> None:
        """Renew a licence."""
        self.renew_one(self.random.choice(self.replicas))

    def renew_one(self, replica: Replica) -> None:
        """Renew a replica's licence in Postgres, for the history that it names."""
        postgres = self.postgres
        if replica.is_cut_off or postgres.rebuilder is not None:
            return
        is_known = replica.redis.run_id == postgres.run_id or not self.rules.has(Rule.IDENTITY_IS_CHECKED)
        if is_known and replica.redis.generation == postgres.generation:
            postgres.licences[replica.name] = self.time + LICENCE_LIFE
            replica.until = self.time + LICENCE_LIFE
            replica.licence_run, replica.licence_generation = replica.redis.run_id, postgres.generation

    def rebuild(self) -> None:
        """Have a replica look at Redis, and rebuild if it is another one."""
        replica = self.random.choice(self.replicas)
        postgres = self.postgres
        if replica.is_cut_off:
            return
        replica.redis = self.redis
        is_known = self.redis.run_id == postgres.run_id or not self.rules.has(Rule.IDENTITY_IS_CHECKED)
        if is_known and self.redis.generation == postgres.generation and postgres.rebuilder is None:
            return
        replica.until = -1
        postgres.licences.pop(replica.name, None)
        postgres.rebuilder = replica.name
        is_admitting = any(until > self.time for until in postgres.licences.values())
        if is_admitting and self.rules.has(Rule.LICENCES_ARE_WAITED_OUT):
            return
        self._rebuild_now()

    def _rebuild_now(self) -> None:
        postgres, redis = self.postgres, self.redis
        if self.rules.has(Rule.REBUILD_DRAINS_THE_OUTBOX) and redis.generation == postgres.generation:
            start = postgres.sequence
            batch = [(sequence, record) for sequence, record in sorted(redis.outbox.items()) if sequence > start]
            postgres.commit(batch, generation=redis.generation, start=start)
        self._note_losses(redis)
        postgres.generation, postgres.sequence, postgres.run_id = postgres.generation + 1, 0, redis.run_id
        fresh = Redis(redis.run_id, self.rules)
        fresh.offset, fresh.generation = redis.offset, postgres.generation
        fresh.seen = max(redis.seen, postgres.seen)
        fresh.version, fresh.cap = postgres.version, postgres.cap
        self.acked = max(self.acked, postgres.version)
        if self.rules.has(Rule.REBUILD_LOADS_SETTLED):
            fresh.counters = dict(postgres.by_window())
        self._load_operations(fresh)
        self._load_holds(fresh)
        # A server is one object for whoever is connected to it.
        redis.__dict__.update(fresh.__dict__)
        self.snapshot = redis.copy(redis.run_id)
        postgres.rebuilder = None

    def _load_operations(self, fresh: Redis) -> None:
        if not self.rules.has(Rule.REBUILD_LOADS_IDS):
            return
        for key, (rid, _, _) in self.postgres.ledger.items():
            self._restore_entry(fresh, key, rid)

    def _restore_entry(self, redis: Redis, key: tuple[object, ...], rid: Rid) -> None:
        attempt = self._slot(redis, rid)
        attempt.amount = self.postgres.total(rid)
        if "SUSPENSE" not in key or not self.rules.has(Rule.ENTRY_ID_NAMES_ITS_KIND):
            attempt.state = "SETTLED"
            redis.final.add(rid[0])
        elif attempt.state != "SETTLED":
            attempt.state = "POSTED"

    def _restore_hold(self, redis: Redis, hold: Hold) -> None:
        attempt = self._slot(redis, hold.rid)
        attempt.state, attempt.amount = ("SUSPENSE" if hold.in_suspense else "HELD"), hold.amount
        truth = self.truth.get(hold.rid)
        attempt.holder, attempt.call = (truth.holder if truth else "?"), 0

    def _load_holds(self, fresh: Redis) -> None:
        for rid, hold in self.postgres.holds.items():
            rule = Rule.REBUILD_LOADS_SUSPENSE if hold.in_suspense else Rule.REBUILD_LOADS_HOLDS
            if not self.rules.has(rule):
                continue
            fresh.holds[rid] = Hold(rid, hold.amount, hold.window, hold.due, hold.in_suspense)
            fresh.counters[hold.window] = fresh.counters.get(hold.window, 0) + hold.amount
            self._restore_hold(fresh, hold)

    def _slot(self, fresh: Redis, rid: Rid) -> Attempt:
        attempts = fresh.operations.setdefault(rid[0], [])
        while len(attempts) < rid[1]:
            attempts.append(Attempt("", -1, "UNKNOWN"))
        return attempts[rid[1] - 1]

    def _note_losses(self, redis: Redis) -> None:
        """Note what is documented as lost: what neither Postgres nor the surviving outbox has."""
        survived = list(redis.outbox.values()) if redis.generation == self.postgres.generation else []
        settled = {rid for rid, _, _ in self.postgres.ledger.values()}
        settled |= {record.rid for record in survived if record.kind == "SETTLED"}
        reserved = {record.rid for record in survived}
        for rid, truth in self.truth.items():
            if rid not in self.postgres.holds and rid not in settled | reserved:
                truth.is_lost = True
            if rid not in settled and truth.spent is not None:
                truth.settle_lost, truth.is_settled, truth.settled_at = True, False, None
        self.wiped_tombstones |= {request for request, _, _ in self.given_up}

    def _is_forgotten(self, redis: Redis, request: str) -> bool:
        is_old = redis.seen - self.births[request] > HORIZON
        return is_old and request not in redis.operations and self.rules.has(Rule.OLD_IDS_ARE_LOOKED_UP)

    def _look_up(self, redis: Redis, request: str) -> None:
        """Give Redis back what Postgres knows of an operation."""
        for key, (rid, _, _) in self.postgres.ledger.items():
            if rid[0] == request:
                self._restore_entry(redis, key, rid)
        for rid, hold in self.postgres.holds.items():
            if rid[0] == request:
                self._restore_hold(redis, hold)

    def forget(self) -> None:
        """Have Redis forget operations that are over and old."""
        redis = self.redis
        is_durable = (self.postgres.generation, self.postgres.sequence) == (redis.generation, redis.sequence)
        if not is_durable and self.rules.has(Rule.FORGET_AFTER_DURABLE):
            return
        for request, attempts in list(redis.operations.items()):
            is_over = all(attempt.state in {"SETTLED", "RELEASED", "POSTED"} for attempt in attempts)
            if is_over and redis.seen - self.births[request] > HORIZON:
                del redis.operations[request]
                redis.final.discard(request)
                self.wiped_tombstones.add(request)

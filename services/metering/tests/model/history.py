"""Random histories of the whole: two replicas, two Routers, Redis that dies, rolls back or splits, clocks that jump.

An auditor who sees everything checks, while a history runs, that no admission exceeds the cap and that no operation is
bought twice; and when it has come to rest, that the ledger has each reservation exactly once, at its true amount, and
that the counters and sums agree with it. What is documented as lost is not counted as a fault: holds and settlements
that were in the flush's lag when Redis lost it.

Importable by tests as `services.metering.tests.model.history`.
"""

from collections.abc import Callable
from dataclasses import replace

from services.metering.tests.model.auditor import Audited
from services.metering.tests.model.rules import Rule
from services.metering.tests.model.stores import HOLD_LIFE, WINDOW, Redis, Reply, Rid
from services.metering.tests.model.world import BASE, STEPS, BrokenPromiseError, Job, Router, Truth

HOLD_AND_WINDOW = 2 * WINDOW


class History(Audited):
    """One history, from a good beginning over random steps to rest."""

    def _actions(self) -> list[tuple[int, Callable[[], None]]]:
        return [
            (8, self.start_job),
            (3, self.redeliver_job),
            (16, self.deliver),
            (8, self.deliver_reply),
            (3, self.duplicate),
            (3, self.give_up),
            (10, self.call_provider),
            (6, self.settle_again),
            (8, self.advance),
            (1, self.pass_window),
            (2, self.jump_clock),
            (8, self.read_batch),
            (8, self.commit_batch),
            (6, self.renew),
            (6, self.rebuild),
            (4, self.expire),
            (2, self.change_limit),
            (3, self.apply_limit),
            (2, self.begin_fold),
            (2, self.end_fold),
            (1, self.kill_router),
            (1, self.kill_replica),
            (2, self.restart_redis),
            (1, self.split_redis),
            (2, self.save_snapshot),
            (2, self.cut_off),
            (3, self.forget),
        ]

    def run(self) -> None:
        """Run to the end, checking every admission on the way.

        Raises:
            BrokenPromiseError: The protocol broke a promise.
        """
        self.recover()
        # Each history favours some actions and forgoes others: rare meetings become likely in some of them.
        weights = [weight * self._favour(action.__name__) for weight, action in self._actions()]
        for _, action in self.random.choices(self._actions(), weights, k=STEPS):
            action()
        self.come_to_rest()

    def _favour(self, name: str) -> int:
        if name in self.never:
            return 0
        return 6 if name in self.often else self.random.choice([0, 1, 1, 2, 5])

    # Routers and the network

    def start_job(self) -> None:
        """Give a Router a new operation."""
        router = self.random.choice(self.routers)
        job = Job(f"q{self.requests}", amount=BASE + self.random.randrange(1, 60))
        self.requests += 1
        self.births[job.request] = self.time
        router.jobs.append(job)
        self.network.append(("reserve", router.name, job))

    def redeliver_job(self) -> None:
        """Give another Router an operation that somebody works on."""
        jobs = [(router, job) for router in self.routers for job in router.jobs if job.state in {"ASKING", "RUNNING"}]
        if jobs:
            owner, job = self.random.choice(jobs)
            router = next(each for each in self.routers if each is not owner)
            if all(each.request != job.request for each in router.jobs):
                again = Job(job.request, amount=job.amount)
                router.jobs.append(again)
                self.network.append(("reserve", router.name, again))

    def give_up(self) -> None:
        """Have a Router give a reserve up whose answer does not come."""
        jobs = [(router, job) for router in self.routers for job in router.jobs if job.state == "ASKING"]
        if jobs:
            router, job = self.random.choice(jobs)
            job.state = "GIVEN_UP"
            self.given_up.add((job.request, router.name, job.call))
            self.network.append(("release", router.name, job))

    def duplicate(self) -> None:
        """Send a message a second time."""
        if self.network:
            self.network.append(self.random.choice(self.network))

    def call_provider(self) -> None:
        """Have a Router with a grant buy, and report."""
        jobs = [(router, job) for router in self.routers for job in router.jobs if job.state == "RUNNING"]
        if jobs:
            router, job = self.random.choice(jobs)
            job.used, job.state = self.random.randrange(1, job.amount), "SPENT"
            self.truth[job.rid or ("", 0)].spent = job.used
            self.network.append(("settle", router.name, job))

    def settle_again(self) -> None:
        """Have a Router send what is not durable once more."""
        for router in self.routers:
            for job in router.jobs:
                if job.state == "SPENT" and not self._is_durable(job):
                    self.network.append(("settle", router.name, job))

    def _is_durable(self, job: Job) -> bool:
        if job.position is None:
            return False
        if not self.rules.has(Rule.JOURNAL_UNTIL_DURABLE):
            return True
        generation, sequence = job.position
        same = generation == self.postgres.generation or not self.rules.has(Rule.GENERATION_IS_IN_WATERMARKS)
        if same and self.postgres.sequence >= sequence:
            job.state = "DONE"
            return True
        return False

    def deliver(self) -> None:
        """Hand one message to one replica; its reply may take a while."""
        if not self.network:
            return
        kind, holder, job = self.network.pop(self.random.randrange(len(self.network)))
        replica = self.random.choice(self.replicas)
        if not self._may_use(replica, is_reserve=kind == "reserve"):
            if kind != "reserve" or self.random.random() < 0.5:
                self.network.append((kind, holder, job))
            return
        if kind != "release" and self._is_forgotten(replica.redis, job.request):
            if replica.is_cut_off:
                self.network.append((kind, holder, job))
                return
            self._look_up(replica.redis, job.request)
        reply = replace(self._run(replica.redis, kind, holder, job), cap=self._cap_in_force())
        self.replies.append((replica, holder, job, reply, replica.redis.generation, self.scripts, self.time))
        if self.random.random() < 0.7:
            self._receive(len(self.replies) - 1)

    def deliver_reply(self) -> None:
        """Hand one reply over that took a while."""
        if self.replies:
            self._receive(self.random.randrange(len(self.replies)))

    def _run(self, redis: Redis, kind: str, holder: str, job: Job) -> Reply:
        self.scripts += 1
        if kind == "reserve":
            return redis.reserve(self.time, job.request, holder, job.call, job.amount)
        if kind == "release":
            if redis is not self.redis:
                # Given back in a history that nobody goes by any more.
                self.wiped_tombstones.add(job.request)
            reply = redis.release(self.time, job.request, holder, job.call)
            if reply.word == "TOO_LATE":
                # Its suspense is in the ledger: that is an operator's to adjust, and the Router is told.
                self.wiped_tombstones.add(job.request)
            return reply
        truth = self.truth.get(job.rid or ("", 0))
        if truth is not None and truth.settled_at is None and redis is self.redis:
            truth.settled_at = self.scripts
        return redis.settle(self.time, job.rid or ("", 0), holder, job.used, job.window)

    def _receive(self, index: int) -> None:
        replica, holder, job, reply, generation, script, asked_at = self.replies.pop(index)
        router = next((each for each in self.routers if each.name == holder), None)
        if router is None:
            return
        if reply.word in {"SETTLED", "REPEAT"}:
            job.position = (generation, reply.sequence)
            truth = self.truth.get(reply.rid)
            if truth is not None:
                truth.is_settled = True
            return
        if reply.word != "GRANTED" or job.state != "ASKING" or self.time - asked_at >= HOLD_LIFE:
            # A hold outlives its call's deadline, so that no answer that still matters comes after its end.
            return
        if self.rules.has(Rule.LICENCE_IS_CHECKED_AFTER) and (
            self.time >= replica.until or generation != replica.licence_generation
        ):
            return
        self._take(router, job, reply, script)

    def _take(self, router: Router, job: Job, reply: Reply, script: int) -> None:
        """Let a Router take a grant; here it is checked that it may."""
        for rid, other in self.truth.items():
            if rid[0] == job.request and rid != reply.rid and not other.is_lost and not other.settle_lost:
                is_over = other.is_dead or self._is_past(rid)
                if other.settled_at is not None and other.settled_at < script:
                    raise BrokenPromiseError(f"{job.request} was closed, and was granted again")
                if not is_over and other.holder != router.name:
                    raise BrokenPromiseError(f"{job.request} is held by two Routers at once")
        known = self.truth.get(reply.rid)
        if known is not None and known.holder != router.name:
            # The record of the first Router's attempt was in the lag, so that the number was given out again. Until
            # Routers re-present their holds after a loss, the second of two such settlements is refused.
            self.given_twice.add(reply.rid)
        job.state, job.rid, job.amount, job.window = "RUNNING", reply.rid, reply.amount, reply.window
        self.truth[reply.rid] = Truth(router.name, reply.amount, reply.window)
        used = sum(
            truth.exposure()
            for rid, truth in self.truth.items()
            if truth.window == reply.window and rid not in self.given_twice
        )
        # Others may have been granted under a larger cap between this grant's script and its arrival.
        since = [cap for at, cap in self.applied if at >= script]
        if used > max([reply.cap, self._cap_in_force(), *since]):
            raise BrokenPromiseError(f"window {reply.window} has {used} of {reply.cap}")

    def _is_past(self, rid: Rid) -> bool:
        hold = self.redis.holds.get(rid)
        return hold is None or hold.in_suspense

    def _cap_in_force(self) -> int:
        return max(cap for version, cap in self.caps.items() if version >= self.acked)

    def kill_router(self) -> None:
        """End a Router; what it had in memory is gone."""
        router = self.random.choice(self.routers)
        for job in router.jobs:
            if job.rid is not None and job.state in {"RUNNING", "SPENT"} and not self._is_durable(job):
                self.truth[job.rid].is_dead = True
        self.routers.remove(router)
        self.routers.append(Router(f"r{self.incarnations}"))
        self.incarnations += 1

    # Time

    def advance(self) -> None:
        """Let time pass."""
        self.time += self.random.randrange(1, 4)

    def pass_window(self) -> None:
        """Let a window pass."""
        self.time += WINDOW

    def jump_clock(self) -> None:
        """Step Redis' clock."""
        self.redis.offset = self.random.choice([0, 2, -WINDOW, -2 * WINDOW, -2 * WINDOW])

    def expire(self) -> None:
        """Move on what is due."""
        replica = self.random.choice(self.replicas)
        if self._may_use(replica, is_reserve=False):
            replica.redis.expire(self.time)

    # Limits

    def change_limit(self) -> None:
        """Set another cap."""
        self.postgres.version += 1
        self.postgres.cap = self.random.randrange(2, 7) * BASE + self.random.randrange(60)
        self.caps[self.postgres.version] = self.postgres.cap
        self.limits.append((self.postgres.version, self.postgres.cap))

    def apply_limit(self) -> None:
        """Bring one cap to Redis, whichever arrives now, and perhaps again later."""
        replica = self.random.choice(self.replicas)
        if self.limits and self._may_use(replica, is_reserve=False):
            index = self.random.randrange(len(self.limits))
            version, cap = self.limits[index]
            if self.random.random() < 0.5:
                self.limits.pop(index)
            replica.redis.set_cap(version, cap)
            if replica.redis is self.redis:
                self.acked = max(self.acked, version)
            self.applied.append((self.scripts, self._cap_in_force()))

    def begin_fold(self) -> None:
        """Begin to fold counters from the ledger; reserves stand still, settlements do not."""
        replica = self.random.choice(self.replicas)
        redis = replica.redis
        is_caught_up = (self.postgres.generation, self.postgres.sequence) == (redis.generation, redis.sequence)
        if self._may_use(replica, is_reserve=False) and redis is self.redis and is_caught_up:
            redis.loading = True
            replica.fold = (redis.generation, redis.sequence, dict(self.postgres.by_window()))

    def end_fold(self) -> None:
        """Load what was folded."""
        for replica in self.replicas:
            if replica.fold is None:
                continue
            generation, sequence, folded = replica.fold
            replica.fold = None
            redis = replica.redis
            redis.loading = False
            is_same = redis.sequence == sequence or not self.rules.has(Rule.LOAD_IS_OVERTAKEN)
            if self._may_use(replica, is_reserve=False) and redis.generation == generation and is_same:
                for window in redis.counters:
                    held = sum(hold.amount for hold in redis.holds.values() if hold.window == window)
                    redis.counters[window] = folded.get(window, 0) + held

    def recover(self) -> None:
        """Bring everything back: Postgres for all, Redis for all, licences for all."""
        for replica in self.replicas:
            replica.is_cut_off, replica.redis, replica.batch, replica.fold = False, self.redis, None, None
        self.redis.loading = False
        for _ in range(40):
            self.rebuild()
            self.renew()
            if self.postgres.rebuilder is not None:
                self.time += 1
        for replica in self.replicas:
            self.renew_one(replica)

    def come_to_rest(self) -> None:
        """Let every message arrive, every settlement become durable, every hold and suspense end."""
        self.recover()
        self.jump_nowhere()
        for _ in range(12):
            self.recover()
            self.settle_again()
            while self.network or self.replies:
                self.deliver()
                self.deliver_reply()
            self._finish_jobs()
            while self.network or self.replies:
                self.deliver()
                self.deliver_reply()
            self.time += HOLD_AND_WINDOW
            self.recover()
            self.redis.expire(self.time)
            self.redis.expire(self.time)
            self._flush_all()

    def jump_nowhere(self) -> None:
        """Set Redis' clock right."""
        self.redis.offset = 0

    def _finish_jobs(self) -> None:
        for router in self.routers:
            for job in router.jobs:
                if job.state == "ASKING":
                    job.state = "GIVEN_UP"
                    self.given_up.add((job.request, router.name, job.call))
                    self.network.append(("release", router.name, job))
                elif job.state == "RUNNING":
                    job.used, job.state = job.amount - 1, "SPENT"
                    self.truth[job.rid or ("", 0)].spent = job.used
                    self.network.append(("settle", router.name, job))

    def _flush_all(self) -> None:
        start = self.postgres.sequence
        batch = [(sequence, record) for sequence, record in sorted(self.redis.outbox.items()) if sequence > start]
        if self.postgres.commit(batch, generation=self.redis.generation, start=start):
            self._trim(self.redis, batch)

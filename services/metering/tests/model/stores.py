"""Redis and Postgres as the protocol sees them: what one script does, what one transaction does.

Importable by tests as `services.metering.tests.model.stores`. Amounts are near 2^53, so that a form that
keeps 14 digits shows.
"""

from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass, field

from services.metering.tests.model.rules import Rule, Rules

WINDOW = 12
HOLD_LIFE = 5

Rid = tuple[str, int]


@dataclass
class Hold:
    """A hold or a suspense."""

    rid: Rid
    amount: int
    window: int
    due: int
    in_suspense: bool = False


@dataclass
class Attempt:
    """One attempt in an operation's record."""

    holder: str
    call: int
    state: str
    due: int = 0
    amount: int = 0


@dataclass
class Record:
    """One outbox record."""

    kind: str
    rid: Rid
    amount: int
    window: int
    due: int = 0
    at: int = 0
    after_posting: bool = False


@dataclass(frozen=True)
class Reply:
    """What a script answers."""

    word: str
    rid: Rid = ("", 0)
    amount: int = 0
    window: int = 0
    sequence: int = 0
    # What was promised when the script ran.
    cap: int = 0


class Redis:
    """One server's data, and the scripts on it."""

    def __init__(self, run_id: int, rules: Rules) -> None:
        """Start empty."""
        self.run_id = run_id
        self.rules = rules
        self.offset = 0
        self.generation = 0
        self.seen = 0
        self.sequence = 0
        self.outbox: dict[int, Record] = {}
        self.counters: dict[int, int] = {}
        self.holds: dict[Rid, Hold] = {}
        self.operations: dict[str, list[Attempt]] = {}
        self.final: set[str] = set()
        self.version = 0
        self.cap = 0
        self.loading = False

    def copy(self, run_id: int) -> "Redis":
        """Return another server that starts from this one's data."""
        other = deepcopy(self)
        other.run_id = run_id
        return other

    def now(self, time: int) -> int:
        """Return the time that scripts go by."""
        if self.rules.has(Rule.TIME_NEVER_GOES_BACK):
            self.seen = max(self.seen, time + self.offset)
        else:
            self.seen = time + self.offset
        return self.seen

    def _store(self, amount: int) -> int:
        return amount if self.rules.has(Rule.AMOUNTS_ARE_EXACT) else int(float(f"{amount:.14g}"))

    def _add(self, window: int, amount: int) -> None:
        if window in self.counters:
            self.counters[window] = self._store(self.counters[window] + amount)

    def _emit(self, record: Record) -> int:
        self.sequence += 1
        self.outbox[self.sequence] = record
        return self.sequence

    def reserve(self, time: int, request: str, holder: str, call: int, amount: int) -> Reply:
        """Hold, or refuse."""
        now = self.now(time)
        attempts = self.operations.setdefault(request, [])
        if request in self.final or self.loading:
            return Reply("REFUSED")
        known = self._known(request, holder, call)
        if known is not None:
            return known
        window = now // WINDOW
        # Closed windows stay for one more.
        for old in [each for each in self.counters if each < window - 1]:
            del self.counters[old]
        if not amount <= self.cap - self.counters.get(window, 0):
            return Reply("DENIED")
        rid = (request, len(attempts) + 1)
        self.counters.setdefault(window, 0)
        self._add(window, amount)
        self.holds[rid] = Hold(rid, amount, window, now + HOLD_LIFE)
        attempts.append(Attempt(holder, call, "HELD", now + HOLD_LIFE))
        sequence = self._emit(Record("RESERVED", rid, amount, window, now + HOLD_LIFE))
        return Reply("GRANTED", rid, amount, window, sequence)

    def _known(self, request: str, holder: str, call: int) -> Reply | None:
        """Answer from the operation's record, if that says enough."""
        for number, attempt in enumerate(self.operations[request], start=1):
            if (attempt.holder, attempt.call) == (holder, call):
                hold = self.holds.get((request, number))
                if attempt.state == "HELD" and hold is not None:
                    return Reply("GRANTED", hold.rid, hold.amount, hold.window, self.sequence)
                return Reply("CLOSED")
            if attempt.state == "HELD" and attempt.holder != holder and self.rules.has(Rule.ONE_HOLDER_AT_A_TIME):
                return Reply("IN_PROGRESS")
        return None

    def _attempt(self, rid: Rid) -> Attempt:
        attempts = self.operations.setdefault(rid[0], [])
        while len(attempts) < rid[1]:
            attempts.append(Attempt("", -1, "UNKNOWN"))
        return attempts[rid[1] - 1]

    def settle(self, time: int, rid: Rid, holder: str, amount: int, window: int) -> Reply:
        """Put the truth in the place of whatever stands there."""
        now = self.now(time)
        attempt, hold = self._attempt(rid), self.holds.get(rid)
        if hold is None and attempt.state == "SETTLED":
            return Reply("REPEAT", rid, attempt.amount, window, self.sequence)
        if hold is None and not self.rules.has(Rule.SETTLEMENTS_ARE_SELF_CONTAINED):
            return Reply("REPEAT", rid, amount, window, self.sequence)
        was_posted = attempt.state == "POSTED"
        counted = hold.amount if hold is not None else attempt.amount if was_posted else 0
        # A hold that stands knows its window better than a Router that may have reserved before a loss.
        window = hold.window if hold is not None else window
        if not self.rules.has(Rule.WINDOW_IS_THE_RESERVES):
            self._add(hold.window if hold is not None else window, -counted)
            window, counted = now // WINDOW, 0
            self.counters.setdefault(window, 0)
        elif hold is None and window >= self.seen // WINDOW - 1:
            self.counters.setdefault(window, 0)
        self._add(window, amount - counted)
        self.holds.pop(rid, None)
        attempt.holder, attempt.state, attempt.amount = attempt.holder or holder, "SETTLED", amount
        self.final.add(rid[0])
        sequence = self._emit(Record("SETTLED", rid, amount, window, at=now, after_posting=was_posted))
        return Reply("SETTLED", rid, amount, window, sequence)

    def release(self, time: int, request: str, holder: str, call: int) -> Reply:
        """Give back; of an unknown call, leave a tombstone."""
        self.now(time)
        attempts = self.operations.setdefault(request, [])
        for number, attempt in enumerate(attempts, start=1):
            if (attempt.holder, attempt.call) == (holder, call):
                hold = self.holds.pop((request, number), None)
                if hold is not None:
                    attempt.state = "RELEASED"
                    self._add(hold.window, -hold.amount)
                    self._emit(Record("RELEASED", hold.rid, 0, hold.window))
                return Reply("TOO_LATE" if attempt.state == "POSTED" else "RELEASED")
        if self.rules.has(Rule.RELEASES_LEAVE_TOMBSTONES):
            attempts.append(Attempt(holder, call, "RELEASED"))
        return Reply("RELEASED")

    def expire(self, time: int) -> None:
        """Move holds that are due into suspense, and suspense whose window is over into the ledger."""
        now = self.now(time)
        for rid, hold in list(self.holds.items()):
            attempt = self._attempt(rid)
            if not hold.in_suspense and hold.due <= now:
                hold.in_suspense, attempt.state, attempt.amount = True, "SUSPENSE", hold.amount
                self._emit(Record("SUSPENDED", rid, hold.amount, hold.window))
            elif hold.in_suspense and hold.window < now // WINDOW:
                del self.holds[rid]
                attempt.state = "POSTED"
                self._emit(Record("POSTED", rid, hold.amount, hold.window, at=now))

    def set_cap(self, version: int, cap: int) -> None:
        """Apply a limit."""
        if version > self.version or not self.rules.has(Rule.LIMITS_APPLY_UPWARD):
            self.version, self.cap = version, cap


@dataclass
class Postgres:
    """What is durable."""

    rules: Rules
    ledger: dict[tuple[object, ...], tuple[Rid, int, int]] = field(default_factory=dict)
    sums: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    holds: dict[Rid, Hold] = field(default_factory=dict)
    run_id: int = -1
    generation: int = 0
    sequence: int = 0
    seen: int = 0
    rebuilder: int | None = None
    licences: dict[int, int] = field(default_factory=dict)
    version: int = 1
    cap: int = 0

    def total(self, rid: Rid) -> int:
        """Return what a reservation's entries come to."""
        return sum(amount for each, amount, _ in self.ledger.values() if each == rid)

    def by_window(self) -> dict[int, int]:
        """Return what the ledger counts in each window."""
        found: dict[int, int] = defaultdict(int)
        for _, amount, window in self.ledger.values():
            found[window] += amount
        return found

    def commit(self, batch: list[tuple[int, Record]], *, generation: int, start: int) -> bool:
        """Write a batch in one transaction, if the offset is where its reader believed it to be."""
        if self.rules.has(Rule.OFFSET_IS_FENCED) and (self.generation, self.sequence) != (generation, start):
            return False
        for sequence, record in batch:
            self._apply(record)
            self.sequence = sequence
            self.seen = max(self.seen, record.at)
        return True

    def _apply(self, record: Record) -> None:
        rid = record.rid
        if record.kind == "RESERVED":
            self.holds[rid] = Hold(rid, record.amount, record.window, record.due)
        elif record.kind == "SUSPENDED" and rid in self.holds:
            self.holds[rid].in_suspense = True
        elif record.kind == "RELEASED":
            self.holds.pop(rid, None)
        elif record.kind == "POSTED":
            self.holds.pop(rid, None)
            self._enter(rid, "SUSPENSE", record.amount, record)
        elif record.kind == "SETTLED":
            self.holds.pop(rid, None)
            posted = sum(amount for key, (each, amount, _) in self.ledger.items() if each == rid and "SUSPENSE" in key)
            if record.after_posting:
                self._enter(rid, "ADJUSTMENT", record.amount - posted, record)
            else:
                self._enter(rid, "SETTLEMENT", record.amount, record)

    def _enter(self, rid: Rid, kind: str, amount: int, record: Record) -> None:
        key: tuple[object, ...] = (rid, kind) if self.rules.has(Rule.ENTRY_ID_NAMES_ITS_KIND) else (rid, "SUSPENSE")
        if not self.rules.has(Rule.ENTRY_ID_ALONE_IS_THE_KEY):
            key = (*key, record.at)
        if key in self.ledger:
            if not self.rules.has(Rule.SUMS_COUNT_WHAT_WAS_INSERTED):
                self.sums[record.window] += amount
            return
        self.ledger[key] = (rid, amount, record.window)
        self.sums[record.window] += amount

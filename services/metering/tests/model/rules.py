"""The rules of the protocol, each of which can be taken out.

Importable by tests as `services.metering.tests.model.rules`.
"""

from dataclasses import dataclass
from enum import Enum


class Rule(Enum):
    """One rule, said in a sentence. Those of the warm rebuild, with Routers that re-present, come with it."""

    AMOUNTS_ARE_EXACT = "Amounts are whole numbers and never pass through a form that keeps fewer digits."
    TIME_NEVER_GOES_BACK = "Now is the highest time seen, so that a step of the clock opens no window again."
    LIMITS_APPLY_UPWARD = "A limit's older version that arrives late changes nothing."
    RELEASES_LEAVE_TOMBSTONES = "Giving an unknown call back leaves a tombstone, against stalled duplicates."
    ONE_HOLDER_AT_A_TIME = "While one Router's hold lives, another's reserve of the same operation waits."
    SETTLEMENTS_ARE_SELF_CONTAINED = "A settlement counts in full although its hold was lost."
    WINDOW_IS_THE_RESERVES = "A settlement counts in the window of its reserve."
    IDENTITY_IS_CHECKED = "Redis under another run id is a loss, whatever its data looks like."
    LICENCES_ARE_WAITED_OUT = "A rebuild waits until nobody else may admit on the old history."
    LICENCE_IS_CHECKED_AFTER = "The licence is looked at again after Redis has replied, before granting."
    GENERATION_IS_IN_WATERMARKS = "A watermark of another generation says nothing of a settlement."
    JOURNAL_UNTIL_DURABLE = "A Router keeps a settlement until it is durable, not until it is counted."
    REBUILD_DRAINS_THE_OUTBOX = "What survived of the outbox goes to the ledger before counters are rebuilt."
    REBUILD_LOADS_SETTLED = "Rebuilt counters start from the ledger."
    REBUILD_LOADS_HOLDS = "Rebuilt counters have the open holds."
    REBUILD_LOADS_SUSPENSE = "Rebuilt counters have the suspense."
    REBUILD_LOADS_IDS = "Rebuilt operation records know the settled ids."
    OLD_IDS_ARE_LOOKED_UP = "Of an id that Redis may have forgotten, Postgres is asked first."
    FORGET_AFTER_DURABLE = "Operation records are forgotten only when Postgres has what they tell."
    LOAD_IS_OVERTAKEN = "Counters folded from the ledger are not loaded if something was written since."
    ENTRY_ID_ALONE_IS_THE_KEY = "The ledger's key is the entry's id alone, without a time."
    ENTRY_ID_NAMES_ITS_KIND = "An entry's id names its kind: suspense and its adjustment are two entries."
    OFFSET_IS_FENCED = "A flush commits only if the offset is where it began to read."
    TRIM_AFTER_COMMIT = "The outbox is trimmed after the commit."
    SUMS_COUNT_WHAT_WAS_INSERTED = "Sums are made from entries that were really inserted."


@dataclass(frozen=True)
class Rules:
    """All rules but those that were taken out."""

    removed: frozenset[Rule] = frozenset()

    def has(self, rule: Rule) -> bool:
        """Tell whether a rule is in."""
        return rule not in self.removed

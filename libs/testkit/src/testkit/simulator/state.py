"""What one running simulator knows: its faults, its ledger, its keys and how slow it is."""

import asyncio
import random

import msgspec

from testkit.simulator.faults import FaultPlan
from testkit.simulator.ledger import Ledger, key_fingerprint
from testkit.simulator.vendors import Vendor


class Latency(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a model thinks before it answers, evenly distributed around the middle."""

    seconds: float = 0.0
    jitter_seconds: float = 0.0


class SimulatorState:
    """The one thing that all requests share."""

    def __init__(self) -> None:
        """Start healthy, fast and with every well-formed key good."""
        self.faults = FaultPlan()
        self.ledger = Ledger()
        self.latency = Latency()
        self.revoked_keys: set[str] = set()
        # When set, only these keys are good.
        self.known_keys: set[str] | None = None
        self.has_models_listing = True
        self._draw = random.Random(7)

    async def think(self) -> None:
        """Wait as long as the latency says."""
        latency = self.latency
        if latency.seconds or latency.jitter_seconds:
            offset = self._draw.uniform(-latency.jitter_seconds, latency.jitter_seconds)
            await asyncio.sleep(max(0.0, latency.seconds + offset))

    def accepts(self, vendor: Vendor, key: str) -> bool:
        """Tell whether the vendor would take this key."""
        fingerprint = key_fingerprint(key)
        if fingerprint in self.revoked_keys or (self.known_keys is not None and fingerprint not in self.known_keys):
            return False
        return vendor.key_pattern.fullmatch(key) is not None

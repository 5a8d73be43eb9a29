"""Steers a running simulator and asks what it saw."""

from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import msgspec

from testkit.simulator.addresses import Addresses
from testkit.simulator.control import Hits, KeyRules, LedgerPage, RuleAdded
from testkit.simulator.faults import FaultKind, FaultRule
from testkit.simulator.ledger import LedgerEntry, Totals
from testkit.simulator.state import Latency

_Answer = TypeVar("_Answer", bound=msgspec.Struct)


class SimulatorControl:
    """A client of the control endpoint."""

    def __init__(self, addresses: Addresses) -> None:
        """Name the simulator."""
        self._url = addresses.control_url
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open a connection pool."""
        self._session = aiohttp.ClientSession(self._url, raise_for_status=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        if self._session is not None:
            await self._session.close()

    async def add_fault(self, kind: FaultKind | str, **fields: str | float | None) -> int:
        """Put a rule in force and return its id; the fields are those of `FaultRule`."""
        rule = msgspec.convert({"kind": str(kind)} | fields, FaultRule)
        answer = await self._call("POST", "/faults", RuleAdded, msgspec.json.encode(rule))
        return answer.rule_id

    async def fault_hits(self, rule_id: int) -> int:
        """Return how many calls have met a rule."""
        return (await self._call("GET", f"/faults/{rule_id}", Hits)).hits

    async def remove_fault(self, rule_id: int) -> None:
        """Withdraw one rule."""
        await self._tell("DELETE", f"/faults/{rule_id}")

    async def clear_faults(self) -> None:
        """Withdraw all rules."""
        await self._tell("DELETE", "/faults")

    async def set_latency(self, seconds: float, *, jitter_seconds: float = 0.0) -> None:
        """Set how long models think."""
        latency = Latency(seconds=seconds, jitter_seconds=jitter_seconds)
        await self._tell("PUT", "/latency", msgspec.json.encode(latency))

    async def set_keys(self, rules: KeyRules) -> None:
        """Set which keys are good."""
        await self._tell("PUT", "/keys", msgspec.json.encode(rules))

    async def ledger(self, *, after: int = 0, marker: str = "") -> list[LedgerEntry]:
        """Return the calls so far."""
        page = await self._call("GET", f"/ledger?after={after}&marker={marker}", LedgerPage)
        return page.entries

    async def clear_ledger(self) -> None:
        """Forget the calls so far."""
        await self._tell("DELETE", "/ledger")

    async def totals(self) -> Totals:
        """Return the sums over all calls."""
        return await self._call("GET", "/totals", Totals)

    async def _call(self, method: str, path: str, kind: type[_Answer], body: bytes | None = None) -> _Answer:
        async with self._connected().request(method, path, data=body) as response:
            return msgspec.json.decode(await response.read(), type=kind)

    async def _tell(self, method: str, path: str, body: bytes | None = None) -> None:
        async with self._connected().request(method, path, data=body):
            pass

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            message = "use the control client as a context manager"
            raise RuntimeError(message)
        return self._session

"""The simulator's control endpoint: what to do wrong, how slow to be, and what happened.

POST   /faults        a `FaultRule` as JSON → {"rule_id": …}
GET    /faults/{id}   → {"hits": …}
DELETE /faults[/{id}]
PUT    /latency       {"seconds": …, "jitter_seconds": …}
PUT    /keys          {"revoked": [fingerprint, …], "known": [fingerprint, …] or null, "has_models_listing": true}
GET    /ledger        ?after=<call id>&marker=<marker> → {"entries": […]}
DELETE /ledger
GET    /totals        → sums over all calls
"""

import msgspec
from aiohttp import web

from testkit.simulator.faults import FaultRule
from testkit.simulator.ledger import LedgerEntry, Totals
from testkit.simulator.state import Latency, SimulatorState


class KeyRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which keys are good, by fingerprint."""

    revoked: list[str] = []
    known: list[str] | None = None
    # Whether keys may list models; some vendors' restricted keys may not.
    has_models_listing: bool = True


class RuleAdded(msgspec.Struct, frozen=True):
    """The id under which a rule can be withdrawn."""

    rule_id: int


class Hits(msgspec.Struct, frozen=True):
    """How many calls have met a rule."""

    hits: int


class LedgerPage(msgspec.Struct, frozen=True):
    """Calls in order."""

    entries: list[LedgerEntry]


def control_application(state: SimulatorState) -> web.Application:
    """Return the application that serves the endpoint."""
    control = _Control(state)
    application = web.Application()
    application.add_routes(
        [
            web.post("/faults", control.add_fault),
            web.get("/faults/{rule_id}", control.hits),
            web.delete("/faults", control.clear_faults),
            web.delete("/faults/{rule_id}", control.remove_fault),
            web.put("/latency", control.set_latency),
            web.put("/keys", control.set_keys),
            web.get("/ledger", control.ledger),
            web.delete("/ledger", control.clear_ledger),
            web.get("/totals", control.totals),
        ]
    )
    return application


class _Control:
    def __init__(self, state: SimulatorState) -> None:
        self._state = state

    async def add_fault(self, request: web.Request) -> web.Response:
        try:
            rule = msgspec.json.decode(await request.read(), type=FaultRule)
        except msgspec.ValidationError as error:
            return web.Response(status=400, text=str(error))
        return _json(RuleAdded(self._state.faults.add(rule)))

    async def hits(self, request: web.Request) -> web.Response:
        return _json(Hits(self._state.faults.hits(int(request.match_info["rule_id"]))))

    async def clear_faults(self, _request: web.Request) -> web.Response:
        self._state.faults.clear()
        return web.Response(status=204)

    async def remove_fault(self, request: web.Request) -> web.Response:
        self._state.faults.remove(int(request.match_info["rule_id"]))
        return web.Response(status=204)

    async def set_latency(self, request: web.Request) -> web.Response:
        self._state.latency = msgspec.json.decode(await request.read(), type=Latency)
        return web.Response(status=204)

    async def set_keys(self, request: web.Request) -> web.Response:
        rules = msgspec.json.decode(await request.read(), type=KeyRules)
        self._state.revoked_keys = set(rules.revoked)
        self._state.known_keys = None if rules.known is None else set(rules.known)
        self._state.has_models_listing = rules.has_models_listing
        return web.Response(status=204)

    async def ledger(self, request: web.Request) -> web.Response:
        entries = self._state.ledger.entries(
            after=int(request.query.get("after", "0")), marker=request.query.get("marker", "")
        )
        return _json(LedgerPage(entries))

    async def clear_ledger(self, _request: web.Request) -> web.Response:
        self._state.ledger.clear()
        return web.Response(status=204)

    async def totals(self, _request: web.Request) -> web.Response:
        totals: Totals = self._state.ledger.totals()
        return _json(totals)


def _json(value: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")

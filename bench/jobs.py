"""What is said between the bench and its load drivers, one JSON document a line."""

import msgspec


class Tls(msgspec.Struct, frozen=True):
    """Paths of one end's certificate, key and trust."""

    certificate: str
    private_key: str
    ca: str


class Grpc(msgspec.Struct, frozen=True):
    """A server of the suite and who calls it."""

    port: int
    tls: Tls


class HttpJob(msgspec.Struct, frozen=True, tag="http"):
    """Posts one body to one path, over and over: a peer, or the provider itself."""

    port: int
    path: str
    headers: dict[str, str]
    body: str
    must_contain: str
    ca: str | None = None


class OperationsJob(msgspec.Struct, frozen=True, tag="operations"):
    """Evaluates guardrails through the Router, agents in turn."""

    router: Grpc
    agent_ids: list[str]


class PairsJob(msgspec.Struct, frozen=True, tag="pairs"):
    """Reserves and settles at Metering, in batches, accounts in turn."""

    metering: Grpc
    agent_ids: list[str]
    owner_ids: list[str]
    batch: int


class LeasesJob(msgspec.Struct, frozen=True, tag="leases"):
    """Takes leases from KeyVault, in batches, agents in turn."""

    keyvault: Grpc
    agent_ids: list[str]
    batch: int


class HealthJob(msgspec.Struct, frozen=True, tag="health"):
    """Asks a server for its health: an empty RPC over the same kind of server."""

    server: Grpc


class ScriptJob(msgspec.Struct, frozen=True, tag="script"):
    """Runs a small script in Redis, pipelined: what any admission costs at least."""

    port: int
    batch: int


Job = HttpJob | OperationsJob | PairsJob | LeasesJob | HealthJob | ScriptJob


class Load(msgspec.Struct, frozen=True):
    """One stretch of load."""

    in_flight: int
    seconds: float


class LoadResult(msgspec.Struct, frozen=True):
    """What a stretch of load came to; latencies are of one call, which may carry a batch."""

    operations: int
    calls: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]

    @property
    def per_second(self) -> float:
        """Return operations a second."""
        return self.operations / self.seconds

"""Licences: which history of Redis a replica may admit on, and until when.

A partition belongs to one (run id, replication id, generation). Any other value is a loss, also when the data looks
newer than Postgres: an old snapshot, or a replica promoted too early, reads as a valid low counter.
"""

import msgspec


class StoreIdentity(msgspec.Struct, frozen=True):
    """Which Redis process, and which history of its data."""

    run_id: str
    replication_id: str


class Licence(msgspec.Struct, frozen=True):
    """What a replica may admit on: one identity, and the generation of each partition."""

    identity: StoreIdentity
    generations: tuple[int, ...]


class Watermark(msgspec.Struct, frozen=True):
    """How far a partition's outbox is in the ledger."""

    partition: int
    generation: int
    sequence: int

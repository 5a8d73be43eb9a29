"""Names and bytes: Redis keys of a partition, and the msgpack that scripts read.

The layout is drawn in `lua/prelude.lua`. Scripts keep bytes in msgpack's text type, which Redis' cmsgpack neither
checks nor converts; Python's encoders refuse that, so records and holds that are put back after a loss are packed here.
"""

import hashlib
from functools import lru_cache
from typing import Final
from uuid import UUID

import msgspec

from metering.domain.accounts import PARTITIONS, AccountKey, partition_of

_encode: Final = msgspec.msgpack.Encoder().encode
_SHORT: Final = 32


@lru_cache(maxsize=4_096)
def meta_key(partition: int) -> bytes:
    """Return the key of a partition's generation, time and sequence."""
    return b"{p%d}:m" % partition


@lru_cache(maxsize=4_096)
def outbox_key(partition: int, generation: int) -> bytes:
    """Return the key of a partition's outbox."""
    return b"{p%d}:%d:o" % (partition, generation)


@lru_cache(maxsize=4_096)
def due_key(partition: int, generation: int) -> bytes:
    """Return the key of what falls due in a partition."""
    return b"{p%d}:%d:d" % (partition, generation)


@lru_cache(maxsize=65_536)
def account_hash_key(account: AccountKey, generation: int) -> bytes:
    """Return the key of the hash that holds all of an account."""
    return b"{p%d}:%d:a:%b" % (partition_of(account), generation, account.encode())


def bucket_key(partition: int, generation: int, hour: int) -> bytes:
    """Return the key of the operation records whose ids are of an hour."""
    return b"{p%d}:%d:i:%d" % (partition, generation, hour)


def generation_prefixes(keys: list[bytes], generations: dict[int, int]) -> list[bytes]:
    """Return those of the keys that belong to another generation of their partition than the one in force."""
    stale = []
    for key in keys:
        partition, generation = parse_prefix(key)
        if partition in generations and generation is not None and generation != generations[partition]:
            stale.append(key)
    return stale


def parse_prefix(key: bytes) -> tuple[int, int | None]:
    """Return the partition of a key, and its generation if it has one; -1 for a key that is not ours."""
    if not key.startswith(b"{p") or b"}:" not in key:
        return -1, None
    head, _, rest = key[2:].partition(b"}:")
    generation = rest.partition(b":")[0]
    if not head.isdigit() or int(head) >= PARTITIONS:
        return -1, None
    return int(head), int(generation) if generation.isdigit() else None


@lru_cache(maxsize=65_536)
def account_digest(account: AccountKey) -> bytes:
    """Return eight bytes that stand for an account inside its partition."""
    return hashlib.sha256(account.encode()).digest()[1:9]


def id_bytes(identifier: str) -> bytes:
    """Return the sixteen bytes of a UUID."""
    return bytes.fromhex(identifier.replace("-", ""))


def id_text(raw: bytes) -> str:
    """Return the text of a UUID's sixteen bytes."""
    return str(UUID(bytes=raw))


def operation_field(request_id: str, account: AccountKey) -> bytes:
    """Return the field of an operation's record: the same request id on two accounts is two operations."""
    return id_bytes(request_id) + account_digest(account)


def pack_record(values: list[int | str | bytes]) -> bytes:
    """Return an array as cmsgpack would write it."""
    count = len(values)
    head = bytes((0x90 | count,)) if count <= 15 else b"\xdc" + count.to_bytes(2, "big")  # noqa: PLR2004 (msgpack fixarray)
    return head + b"".join(_pack_raw(each) if isinstance(each, bytes) else _encode(each) for each in values)


def _pack_raw(value: bytes) -> bytes:
    length = len(value)
    if length < _SHORT:
        return bytes((0xA0 | length,)) + value
    return b"\xd9" + length.to_bytes(1, "big") + value

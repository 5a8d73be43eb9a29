"""One AES-GCM ciphertext that opens under two keys: GCM does not commit to its key.

The tag is linear in every block of the ciphertext, so that one block can be solved for such that two keys give the same
tag (Dodis, Grubbs, Ristenpart and Woodage, 2018; Len, Grubbs and Ristenpart, 2021).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

BLOCK_BYTES = 16
_R = 0xE1 << 120


def collide(keys: tuple[bytes, bytes], nonce: bytes, *, associated_data: bytes, blocks: int) -> bytes:
    """Return ciphertext and tag of `blocks` blocks that authenticate under both keys."""
    fixed = [bytes([position]) * BLOCK_BYTES for position in range(1, blocks)]
    lengths = (len(associated_data) * 8).to_bytes(8, "big") + (blocks * BLOCK_BYTES * 8).to_bytes(8, "big")
    wanted = 0
    factors = []
    for key in keys:
        h = int.from_bytes(_encrypt_block(key, bytes(BLOCK_BYTES)), "big")
        mask = int.from_bytes(_encrypt_block(key, nonce + b"\0\0\0\1"), "big")
        # The free block is the last one: it is multiplied with H twice, once for itself and once for the lengths.
        wanted ^= mask ^ _hash(h, [*_padded(associated_data), *fixed, bytes(BLOCK_BYTES), lengths])
        factors.append(_multiply(h, h))
    free = _multiply(wanted, _inverse(factors[0] ^ factors[1])).to_bytes(BLOCK_BYTES, "big")
    ciphertext = b"".join((*fixed, free))
    h = int.from_bytes(_encrypt_block(keys[0], bytes(BLOCK_BYTES)), "big")
    mask = int.from_bytes(_encrypt_block(keys[0], nonce + b"\0\0\0\1"), "big")
    tag = mask ^ _hash(h, [*_padded(associated_data), *fixed, free, lengths])
    return ciphertext + tag.to_bytes(BLOCK_BYTES, "big")


def _encrypt_block(key: bytes, block: bytes) -> bytes:
    # A single block is what GCM itself is made of; nothing is kept secret here.
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305 (as said above)
    return encryptor.update(block) + encryptor.finalize()


def _padded(text: bytes) -> list[bytes]:
    return [text[start : start + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0") for start in range(0, len(text), BLOCK_BYTES)]


def _hash(h: int, blocks: list[bytes]) -> int:
    state = 0
    for block in blocks:
        state = _multiply(state ^ int.from_bytes(block, "big"), h)
    return state


def _multiply(left: int, right: int) -> int:
    """Multiply in the field of GCM (NIST SP 800-38D, section 6.3)."""
    product = 0
    for bit in range(127, -1, -1):
        if left >> bit & 1:
            product ^= right
        right = right >> 1 ^ (_R if right & 1 else 0)
    return product


def _inverse(value: int) -> int:
    """Return the inverse: the power of 2^128 - 2."""
    result, power = 1 << 127, value
    for _ in range(127):
        power = _multiply(power, power)
        result = _multiply(result, power)
    return result

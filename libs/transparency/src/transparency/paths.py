"""Which parts of a tree the proofs of RFC 6962 consist of (sections 2.1.1 and 2.1.2), without their hashes."""

from __future__ import annotations

from dataclasses import dataclass

from transparency.merkle import SIZE_MAX


@dataclass(frozen=True, slots=True)
class Span:
    """The leaves from `start` up to, not including, `end`, as one subtree."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Node:
    """The root of a subtree with 2**level leaves, the `position`-th of its kind."""

    level: int
    position: int


def inclusion_path(index: int, size: int) -> list[Span]:
    """Return the subtrees whose hashes prove the leaf at `index`, from the leaf up.

    Raises:
        ValueError: the tree has no such leaf.
    """
    if not 0 <= index < size <= SIZE_MAX:
        raise ValueError("the index must lie in the tree")
    path = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(Span(middle, end))
            end = middle
        else:
            path.append(Span(start, middle))
            start = middle
    return path[::-1]


def consistency_path(old_size: int, new_size: int) -> list[Span]:
    """Return the subtrees whose hashes prove that one tree continues another, in the order of RFC 6962.

    Raises:
        ValueError: the sizes are not those of a tree that grew.
    """
    if not 0 <= old_size <= new_size <= SIZE_MAX:
        raise ValueError("a tree only grows")
    if old_size in (0, new_size):
        return []
    path = []
    start, end = 0, new_size
    while end != old_size:
        middle = start + _split(end - start)
        if old_size <= middle:
            path.append(Span(middle, end))
            end = middle
        else:
            path.append(Span(start, middle))
            start = middle
    # The whole old tree is known to whoever asks; a part of it is not.
    if start:
        path.append(Span(start, end))
    return path[::-1]


def perfect_nodes(span: Span) -> list[Node]:
    """Return the full subtrees that `span` consists of, left to right. It must be a subtree of some tree."""
    nodes = []
    start = span.start
    while start < span.end:
        level = (span.end - start).bit_length() - 1
        nodes.append(Node(level, start >> level))
        start += 1 << level
    return nodes


def _split(leaves: int) -> int:
    """Return the largest power of two below `leaves`, which is 2 or more."""
    return 1 << ((leaves - 1).bit_length() - 1)

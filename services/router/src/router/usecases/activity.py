"""Counts the operations that are under way and not waiting for a provider: those that may still join a batch."""


class Activity:
    """A gauge of operations; belongs to one event loop."""

    __slots__ = ("operations", "waiting")

    def __init__(self) -> None:
        """Start with nothing under way."""
        self.operations = 0
        self.waiting = 0

    def count(self) -> int:
        """Return how many operations may still submit something soon."""
        return self.operations - self.waiting

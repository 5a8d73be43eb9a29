"""What stops a measurement."""


class BenchError(Exception):
    """A measurement could not be made, or what it measured was wrong; the message says what to do."""

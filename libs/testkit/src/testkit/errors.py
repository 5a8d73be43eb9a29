"""What can go wrong in the development stack itself, as opposed to in what it tests."""


class TestkitError(Exception):
    """The embedded stack could not do what was asked; the message says what and what to look at."""

    # pytest would otherwise collect a class whose name begins with Test.
    __test__ = False

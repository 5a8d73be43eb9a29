"""What every test of the suite runs under: unit tests reach no network."""

import pytest
import pytest_socket


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse network sockets in unit tests; an event loop's own Unix pair is not the network."""
    if "unit" in item.path.parts:
        pytest_socket.disable_socket(allow_unix_socket=True)


def pytest_runtest_teardown() -> None:
    """Give the next test its sockets back."""
    pytest_socket.enable_socket()

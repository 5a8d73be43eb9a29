"""Free TCP ports on the loopback address."""

import socket


def free_port() -> int:
    """Return a port that nobody listened on a moment ago; whoever binds it must be ready to lose the race."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""Where a running simulator is reached."""

import msgspec

from testkit.simulator.vendors import VENDORS


class Addresses(msgspec.Struct, frozen=True, kw_only=True):
    """The ports of a running simulator, on the loopback address."""

    http_port: int
    https_port: int | None
    control_port: int

    @property
    def control_url(self) -> str:
        """Return the control endpoint."""
        return f"http://127.0.0.1:{self.control_port}"

    @property
    def hosts(self) -> list[str]:
        """Return the `host:port` pairs that an operator must allow, since they are private."""
        ports = [self.http_port] if self.https_port is None else [self.https_port, self.http_port]
        return [f"localhost:{port}" for port in ports]

    def base_url(self, vendor: str) -> str:
        """Return a vendor's base URL, as a key would carry it: https, but for Ollama."""
        row = VENDORS[vendor]
        if vendor == "ollama" or self.https_port is None:
            return f"http://localhost:{self.http_port}/{vendor}{row.base_path}"
        return f"https://localhost:{self.https_port}/{vendor}{row.base_path}"

    def http_base_url(self, vendor: str) -> str:
        """Return a vendor's base URL without TLS, for tests that look at nothing but the wire format."""
        return f"http://localhost:{self.http_port}/{vendor}{VENDORS[vendor].base_path}"

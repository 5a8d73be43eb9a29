"""Says where a provider is reached, by the catalogue, what the owner sent, and what the operator allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from keyvault.domain.base_urls import canonical_base_url
from keyvault.domain.new_keys import refused

if TYPE_CHECKING:
    from collections.abc import Collection

    from keyvault.ports import Capabilities

_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class CheckBaseUrl:
    """The check of one deployment."""

    def __init__(self, capabilities: Capabilities, allowed_hosts: Collection[str]) -> None:
        """Exempt `allowed_hosts` (`host:port`) from the rules on private names, http and a provider's fixed hosts."""
        self._capabilities = capabilities
        self._allowed_hosts = frozenset(allowed_hosts)

    def __call__(self, provider: str, base_url: str) -> str:
        """Return the canonical base URL; the provider's own when the owner sent none.

        Raises:
            InvalidArgumentError: the provider is unknown, or the URL may not be saved.
        """
        terms = self._capabilities.provider(provider)
        if terms is None:
            known = ", ".join(self._capabilities.providers())
            raise refused("provider", "PROVIDER_UNKNOWN", f"Send one of: {known}.")
        if not base_url:
            if not terms.base_url:
                raise refused(
                    "base_url", "BASE_URL_REQUIRED", f"Say where {terms.name} is reached; it has no address of its own."
                )
            return canonical_base_url(terms.base_url, allowed_hosts=self._allowed_hosts)
        canonical = canonical_base_url(base_url, allowed_hosts=self._allowed_hosts)
        parts = urlsplit(canonical)
        # The canonical form has no credentials, and an IPv6 address in brackets, as the operator writes it.
        place = parts.netloc if parts.port else f"{parts.netloc}:{_DEFAULT_PORTS[parts.scheme]}"
        if terms.fixed_hosts and parts.hostname not in terms.fixed_hosts and place not in self._allowed_hosts:
            # Else the key of a vendor could be sent to whoever the base URL names.
            hosts = ", ".join(sorted(terms.fixed_hosts))
            raise refused(
                "base_url", "BASE_URL_OF_ANOTHER_HOST", f"{terms.name} is reached at {hosts} only; leave it empty."
            )
        return canonical

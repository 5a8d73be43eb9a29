"""How this service gets a token of Vault or OpenBao: from a file that an agent keeps, by AppRole, or by Kubernetes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from keyvault.adapters.root_keys.secret_files import read_secret_line


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFileLogin:
    """A token in a file, which a Vault agent or an operator keeps fresh. It is read at every use."""

    token_file: Path

    def read(self) -> str:
        """Return the token. Raises RootKeyUnusableError."""
        return read_secret_line(self.token_file, setting="root_key.vault_transit.token_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleLogin:
    """A login at an auth method, which answers with a token."""

    method: Literal["approle", "kubernetes"]
    mount: str
    role: str
    """The role id of AppRole, the name of the role of Kubernetes."""
    secret_file: Path
    """The secret id of AppRole, the service account's token of Kubernetes."""

    @property
    def path(self) -> str:
        """Return where to log in, below `/v1/`."""
        return f"auth/{self.mount}/login"

    def body(self) -> dict[str, Any]:
        """Return what to log in with. Raises RootKeyUnusableError."""
        if self.method == "approle":
            secret = read_secret_line(self.secret_file, setting="root_key.vault_transit.secret_id_file")
            return {"role_id": self.role, "secret_id": secret}
        # Kubernetes decides who may read what it mounts.
        jwt = read_secret_line(self.secret_file, setting="root_key.vault_transit.jwt_file", is_private=False)
        return {"role": self.role, "jwt": jwt}

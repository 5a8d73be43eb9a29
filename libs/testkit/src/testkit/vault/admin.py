"""Sets up a Vault, an OpenBao or the fake over its HTTP API, as an operator would."""

import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from testkit.errors import TestkitError


class VaultAdmin:
    """Somebody with a token that may do everything."""

    def __init__(self, address: str, token: str, *, namespace: str | None = None, ca_file: Path | None = None) -> None:
        """Act at `address`, in `namespace`; believe certificates of `ca_file`."""
        self.address = address.rstrip("/")
        self._headers = {"X-Vault-Token": token, "X-Vault-Request": "true"}
        self._tls = True if ca_file is None else ssl.create_default_context(cafile=ca_file)
        if namespace is not None:
            self._headers["X-Vault-Namespace"] = namespace

    async def mount_transit(self, mount: str) -> None:
        """Mount a transit engine."""
        await self._call("POST", f"sys/mounts/{mount}", {"type": "transit"})

    async def make_key(self, mount: str, name: str) -> None:
        """Make a key of the engine's usual type, AES-256-GCM."""
        await self._call("POST", f"{mount}/keys/{name}", {})

    async def rotate_key(self, mount: str, name: str) -> None:
        """Add a version to a key."""
        await self._call("POST", f"{mount}/keys/{name}/rotate", {})

    async def set_min_decryption_version(self, mount: str, name: str, version: int) -> None:
        """Forbid what older versions encrypted."""
        await self._call("POST", f"{mount}/keys/{name}/config", {"min_decryption_version": version})

    async def set_policy(self, name: str, paths: Sequence[str], *, capabilities: Sequence[str] = ("update",)) -> None:
        """Say what bearers of a policy may do."""
        rules = {"path": {path: {"capabilities": list(capabilities)} for path in paths}}
        await self._call("PUT", f"sys/policies/acl/{name}", {"policy": json.dumps(rules)})

    async def make_token(self, *policies: str) -> str:
        """Return a new token that lasts ten minutes."""
        body = {"policies": list(policies), "ttl": "10m", "no_default_policy": True}
        return str((await self._call("POST", "auth/token/create", body))["auth"]["client_token"])

    async def revoke_token(self, token: str) -> None:
        """End a token."""
        await self._call("POST", "auth/token/revoke", {"token": token})

    async def enable_auth(self, method: str, *, mount: str) -> None:
        """Mount an auth method."""
        await self._call("POST", f"sys/auth/{mount}", {"type": method})

    async def make_app_role(self, mount: str, name: str, *policies: str) -> tuple[str, str]:
        """Make a role of AppRole, and return its id and a secret id."""
        await self._call("POST", f"auth/{mount}/role/{name}", {"token_policies": list(policies), "token_ttl": "10m"})
        role = await self._call("GET", f"auth/{mount}/role/{name}/role-id")
        secret = await self._call("POST", f"auth/{mount}/role/{name}/secret-id", {})
        return str(role["data"]["role_id"]), str(secret["data"]["secret_id"])

    async def make_kubernetes_role(self, mount: str, name: str, *policies: str, service_account: str) -> None:
        """Make a role of Kubernetes for one service account."""
        body = {"token_policies": list(policies), "bound_service_account_names": [service_account]}
        await self._call("POST", f"auth/{mount}/role/{name}", body)

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        url = f"{self.address}/v1/{path}"
        async with (
            aiohttp.ClientSession(headers=self._headers) as session,
            session.request(method, url, json=body, ssl=self._tls) as response,
        ):
            content = await response.read()
            if not response.ok:
                message = f"{method} {path}: {response.status} {content[:500]!r}"
                raise TestkitError(message)
            return dict(json.loads(content)) if content else {}

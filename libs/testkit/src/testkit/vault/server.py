"""A fake of HashiCorp Vault, by the source of Vault 1.21: what logging in and the transit engine need, and its errors.

Not faked: sealing by shares, leases, batches of ciphertexts, every key type but AES-256-GCM, and policies beyond exact
paths and a trailing `*`.
"""

import asyncio
import fnmatch
import json
import secrets
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from testkit.vault.transit import TransitError, TransitKey

_ROOT = "root"

# Whether a path may be used with a capability.
_Rules = Callable[[str, str], bool]


@dataclass
class _Namespace:
    """What is mounted, and who may what, in one namespace."""

    engines: dict[str, dict[str, TransitKey]] = field(default_factory=dict)
    auth_methods: dict[str, str] = field(default_factory=dict)
    policies: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    tokens: dict[str, list[str]] = field(default_factory=dict)
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)
    secret_ids: dict[str, str] = field(default_factory=dict)


class _Answer(Exception):  # noqa: N818 (not an error: how a handler answers early)
    """An answer that ends the handling of a request."""

    def __init__(self, status: int, *errors: str) -> None:
        super().__init__(status)
        self.status = status
        self.errors = list(errors)


class FakeVault:
    """A server on a loopback port."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        """Start with nothing but a root token; speak TLS if given what for."""
        self._tls = tls
        self.token = "hvs.canary" + secrets.token_hex(12)
        self.requests: list[str] = []
        self.is_sealed = False
        self.ignores_associated_data = False
        """As Vault before 1.13 does."""
        self.faults: list[tuple[int, str]] = []
        """Answers for the next requests, in place of the right ones."""
        self.moved_to: str | None = None
        """Where requests are sent on to, as a standby does that names its active node."""
        self.jwts: dict[str, str] = {}
        """Tokens of service accounts that the cluster vouches for, and whose they are."""
        self._held = asyncio.Event()
        self._held.set()
        self._namespaces: dict[str, _Namespace] = {"": _Namespace(tokens={self.token: [_ROOT]})}
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """Return where it answers."""
        scheme, host = ("http", "127.0.0.1") if self._tls is None else ("https", "localhost")
        return f"{scheme}://{host}:{self._port}"

    async def __aenter__(self) -> Self:
        """Start; after a stop, on the old port."""
        app = web.Application()
        app.router.add_route("*", "/v1/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True, ssl_context=self._tls)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; keys and tokens stay."""
        self._held.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def forget_tokens(self) -> int:
        """End every token but the root's, as time does, and return how many that were."""
        ended = 0
        for space in self._namespaces.values():
            ended += len(space.tokens) - 1
            space.tokens = {self.token: [_ROOT]}
        return ended

    def hold(self) -> None:
        """Take requests, and answer none until `let_go`."""
        self._held.clear()

    def let_go(self) -> None:
        """Answer again."""
        self._held.set()

    async def _handle(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        self.requests.append(path)
        await self._held.wait()
        if self.moved_to is not None:
            return web.Response(status=307, headers={"Location": f"{self.moved_to}/v1/{path}"})
        try:
            self._ensure_well()
            content = await request.read()
            answer = self._route(request, path, json.loads(content) if content else {})
        except _Answer as early:
            return web.json_response({"errors": early.errors}, status=early.status)
        except TransitError as error:
            return web.json_response({"errors": [str(error)]}, status=400)
        return web.Response(status=204) if answer is None else web.json_response(answer)

    def _ensure_well(self) -> None:
        if self.faults:
            raise _Answer(*self.faults.pop(0))
        if self.is_sealed:
            raise _Answer(503, "Vault is sealed")

    def _route(self, request: web.Request, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        space = self._namespaces.setdefault(
            request.headers.get("X-Vault-Namespace", "").strip("/"), _Namespace(tokens={self.token: [_ROOT]})
        )
        parts = path.split("/")
        if parts[0] == "auth" and parts[-1] == "login":
            return self._log_in(space, parts[1], body)
        rules = self._rules(space, request.headers.get("X-Vault-Token"))
        if parts[0] == "sys":
            _system(space, parts, body, rules)
            return None
        if parts[0] == "auth":
            return _auth(space, parts, body, rules)
        return self._transit(space, path, body, rules)

    def _rules(self, space: _Namespace, token: str | None) -> _Rules:
        policies = space.tokens.get(token or "")
        if policies is None:
            raise _Answer(403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
        if _ROOT in policies:
            return lambda path, capability: True  # noqa: ARG005 (root may everything)
        granted = [rule for name in policies for rule in space.policies.get(name, {}).items()]

        def allows(path: str, capability: str) -> bool:
            return any(fnmatch.fnmatchcase(path, pattern) and capability in may for pattern, may in granted)

        return allows

    def _transit(self, space: _Namespace, path: str, body: dict[str, Any], rules: _Rules) -> dict[str, Any] | None:
        mount = next((mount for mount in space.engines if path.startswith(f"{mount}/")), None)
        verb, _, name = path.removeprefix(f"{mount}/").partition("/")
        keys = space.engines.get(mount or "", {})
        # Encrypting with a key that is not there creates it, for whom the policy lets create.
        capability = "create" if verb == "encrypt" and name not in keys else "update"
        if not rules(path, capability):
            raise _Answer(403, "1 error occurred:\n\t* permission denied\n\n")
        if mount is None:
            raise _Answer(404, f'no handler for route "{path}". route entry not found.')
        if verb == "keys":
            return _manage(keys, name, body)
        if capability == "create":
            keys[name] = TransitKey()
        key = keys.get(name)
        if key is None:
            raise _Answer(400, "encryption key not found")
        binds = not self.ignores_associated_data
        if verb == "encrypt":
            return _wrapped({"ciphertext": key.encrypt(body, binds=binds), "key_version": len(key.versions)})
        if verb == "decrypt":
            return _wrapped({"plaintext": key.decrypt(body, binds=binds)})
        raise _Answer(404, "1 error occurred:\n\t* unsupported path\n\n")

    def _log_in(self, space: _Namespace, mount: str, body: dict[str, Any]) -> dict[str, Any]:
        method = space.auth_methods.get(mount)
        if method == "approle":
            role = next((role for role in space.roles.values() if role.get("role_id") == body.get("role_id")), None)
            if role is None or space.secret_ids.get(body.get("secret_id", "")) != body.get("role_id"):
                raise _Answer(400, "invalid role or secret ID")
        elif method == "kubernetes":
            role = space.roles.get(f"{mount}/{body.get('role')}")
            if role is None:
                raise _Answer(400, f'invalid role name "{body.get("role")}"')
            if self.jwts.get(body.get("jwt", "")) not in role["bound_service_account_names"]:
                raise _Answer(403, "permission denied")
        else:
            raise _Answer(403, "permission denied")
        token = _new_token(space, role["token_policies"])
        return {"auth": {"client_token": token, "policies": role["token_policies"], "lease_duration": 600}}


def _system(space: _Namespace, parts: list[str], body: dict[str, Any], rules: _Rules) -> None:
    _ensure(rules, parts)
    match parts:
        case ["sys", "mounts", *mount]:
            if "/".join(mount) in space.engines:
                raise _Answer(400, f"path is already in use at {'/'.join(mount)}/")
            space.engines["/".join(mount)] = {}
        case ["sys", "auth", mount]:
            space.auth_methods[mount] = body["type"]
        case ["sys", "policies", "acl", name]:
            rules_of = json.loads(body["policy"])["path"]
            space.policies[name] = {path: rule["capabilities"] for path, rule in rules_of.items()}
        case _:
            raise _Answer(404, "unsupported path")


def _auth(space: _Namespace, parts: list[str], body: dict[str, Any], rules: _Rules) -> dict[str, Any] | None:
    _ensure(rules, parts)
    match parts:
        case ["auth", "token", "create"]:
            return {"auth": {"client_token": _new_token(space, body["policies"])}}
        case ["auth", "token", "revoke"]:
            space.tokens.pop(body["token"], None)
        case ["auth", mount, "role", name]:
            role_id = secrets.token_hex(16)
            space.roles[f"{mount}/{name}"] = {"role_id": role_id, **body}
        case ["auth", mount, "role", name, "role-id"]:
            return _wrapped({"role_id": space.roles[f"{mount}/{name}"]["role_id"]})
        case ["auth", mount, "role", name, "secret-id"]:
            secret_id = secrets.token_hex(16)
            space.secret_ids[secret_id] = space.roles[f"{mount}/{name}"]["role_id"]
            return _wrapped({"secret_id": secret_id})
        case _:
            raise _Answer(404, "unsupported path")
    return None


def _manage(keys: dict[str, TransitKey], name: str, body: dict[str, Any]) -> dict[str, Any]:
    name, _, action = name.partition("/")
    key = keys.setdefault(name, TransitKey()) if not action else keys[name]
    if action == "rotate":
        key.rotate()
    elif action == "config":
        key.min_decryption_version = body.get("min_decryption_version", key.min_decryption_version)
    return _wrapped({"name": name, "latest_version": len(key.versions), "type": "aes256-gcm96"})


def _ensure(rules: _Rules, parts: list[str]) -> None:
    if not rules("/".join(parts), "update"):
        raise _Answer(403, "1 error occurred:\n\t* permission denied\n\n")


def _new_token(space: _Namespace, policies: list[str]) -> str:
    token = "hvs.canary" + secrets.token_hex(12)
    space.tokens[token] = list(policies)
    return token


def _wrapped(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "request_id": secrets.token_hex(8),
        "lease_id": "",
        "renewable": False,
        "lease_duration": 0,
        "data": data,
        "auth": None,
    }

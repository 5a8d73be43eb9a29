"""What each service of the embedded stack is told, by the same environment variables that a deployment uses."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from servicekit.identity import TlsFiles
from testkit.pki import TRUST_DOMAIN

# What a Python process needs of its surroundings. Nothing else is inherited: a provider key in the developer's
# environment has no business in a service, nor has a setting from another stack.
_INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONDONTWRITEBYTECODE")
_DEPLOYMENT = "embedded"


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a service finds the others, and what all of them share."""

    keyvault_dsn: str
    metering_dsn: str
    redis_url: str
    root_key_file: Path
    answer_key_file: Path
    ca_file: Path
    allowed_hosts: list[str]
    log_level: str = "info"
    keyvault_target: str = ""
    metering_target: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)


def keyvault_environment(tls: TlsFiles, around: Surroundings) -> dict[str, str]:
    """Return KeyVault's environment; it alone is told where the root key lies."""
    return _common("BYOK_KEYVAULT_", tls, around) | {
        "BYOK_KEYVAULT_POSTGRES__DSN": around.keyvault_dsn,
        "BYOK_KEYVAULT_ROOT_KEY__FILE": str(around.root_key_file),
        "BYOK_KEYVAULT_DEPLOYMENT": _DEPLOYMENT,
        "BYOK_KEYVAULT_MIGRATE_ON_START": "true",
        "BYOK_KEYVAULT_ALLOWED_PRIVATE_HOSTS": json.dumps(around.allowed_hosts),
    }


def metering_environment(tls: TlsFiles, around: Surroundings) -> dict[str, str]:
    """Return Metering's environment."""
    return _common("BYOK_METERING_", tls, around) | {
        "BYOK_METERING_POSTGRES__DSN": around.metering_dsn,
        "BYOK_METERING_REDIS__URL": around.redis_url,
        "BYOK_METERING_REDIS__DURABILITY": "aof",
        "BYOK_METERING_MIGRATE_ON_START": "true",
        "BYOK_METERING_DEFAULTS__DAILY_COST_CAP_NANO_USD": "1000000000",
        **_peer("BYOK_METERING_KEYVAULT", around.keyvault_target),
    }


def router_environment(tls: TlsFiles, around: Surroundings) -> dict[str, str]:
    """Return Router's environment; it alone is told where the key of kept answers lies."""
    return _common("BYOK_ROUTER_", tls, around) | {
        "BYOK_ROUTER_ANSWER_KEY_FILE": str(around.answer_key_file),
        "BYOK_ROUTER_EGRESS__ALLOWED_HOSTS": json.dumps(around.allowed_hosts),
        "BYOK_ROUTER_EGRESS__EXTRA_CA_FILE": str(around.ca_file),
        **_peer("BYOK_ROUTER_KEYVAULT", around.keyvault_target),
        **_peer("BYOK_ROUTER_METERING", around.metering_target),
    }


def target_of(ports: list[int]) -> str:
    """Return the gRPC target of replicas on the loopback address."""
    return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)


def inherited() -> dict[str, str]:
    """Return the variables that every process of the stack inherits."""
    return {name: os.environ[name] for name in _INHERITED if name in os.environ}


def _common(prefix: str, tls: TlsFiles, around: Surroundings) -> dict[str, str]:
    extra = {name: value for name, value in around.extra.items() if name.startswith((prefix, "PYTHON", "GRPC_"))}
    return (
        inherited()
        | {
            f"{prefix}SERVER__TLS__CERTIFICATE_FILE": str(tls.certificate),
            f"{prefix}SERVER__TLS__PRIVATE_KEY_FILE": str(tls.private_key),
            f"{prefix}SERVER__TLS__CA_FILE": str(tls.ca),
            f"{prefix}SERVER__TRUST_DOMAIN": TRUST_DOMAIN,
            f"{prefix}TELEMETRY__LOG_LEVEL": around.log_level,
        }
        | extra
    )


def _peer(prefix: str, target: str) -> dict[str, str]:
    # A target with several addresses has no host name of its own to check the certificate against.
    return {f"{prefix}__TARGET": target, f"{prefix}__SERVER_NAME": "localhost"}

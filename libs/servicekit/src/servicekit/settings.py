"""What every service lets an operator set, and how settings are read.

Sources, the first that names a field wins: the environment (`BYOK_<SVC>_SERVER__LISTEN`, nested by `__`), then the
TOML file named by `--config`. A name that no field has is refused in both. A service's own `settings.py` subclasses
`ServiceSettings`:

    class Settings(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="BYOK_KEYVAULT_")
        server: ServerSettings
        ...

    settings = load(Settings, sys.argv[1:]).settings
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from typing_extensions import override

from servicekit.identity import TlsFiles

_NESTED: Final = "__"
_NUMBER: Final = re.compile(r"\d+(\.\d+)?")

Listen = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):\d{1,5}$")]
"""`host:port`; port 0 takes a free one."""


TrustDomain = Annotated[str, Field(pattern=r"^[a-z0-9._-]{1,255}$")]
"""A trust domain as SPIFFE spells it."""


def _seconds(value: object) -> object:
    # The environment holds text only, and pydantic reads a bare number in text as nothing.
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    return value


Duration = Annotated[timedelta, BeforeValidator(_seconds), Field(ge=timedelta(0))]
"""A duration: seconds, or ISO 8601 such as `PT1.5S`."""

PositiveDuration = Annotated[timedelta, BeforeValidator(_seconds), Field(gt=timedelta(0))]
"""A duration above zero, written as `Duration` is."""


class SettingsGroup(BaseModel):
    """A group of settings: frozen, and without unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TlsSettings(SettingsGroup):
    """The files of this process's identity. They may be replaced on disk at any time."""

    certificate_file: Path
    private_key_file: Path
    ca_file: Path

    def files(self) -> TlsFiles:
        """Return the three paths."""
        return TlsFiles(certificate=self.certificate_file, private_key=self.private_key_file, ca=self.ca_file)


class ServerSettings(SettingsGroup):
    """The gRPC server."""

    tls: TlsSettings
    trust_domain: TrustDomain | None = None
    """The SPIFFE trust domain that callers must be of, such as `byok.example`; unset, the CA alone decides."""
    listen: Listen = "127.0.0.1:0"
    deadline_default: PositiveDuration = timedelta(seconds=30)
    """For calls that come without one."""
    deadline_max: PositiveDuration = timedelta(minutes=5)
    deadline_margin: PositiveDuration = timedelta(milliseconds=20)
    """Shaved from the caller's deadline, so that our error arrives before its own."""
    message_bytes_max: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Of a request, unless its RPC has a limit of its own."""
    concurrent_calls_max: Annotated[int, Field(ge=1)] = 10_000
    connection_age_max: PositiveDuration = timedelta(hours=1)
    """After this a client must connect, and so be authenticated, again."""
    drain_grace: PositiveDuration = timedelta(seconds=20)
    """How long calls and undurable settlements may take to end after SIGTERM."""
    drain_notice: Duration = timedelta(0)
    """How long calls are still taken after health says NOT_SERVING, so that load balancers notice first."""
    reflection: bool = True
    certificate_check_interval: PositiveDuration = timedelta(seconds=10)
    """How often files are looked at for a new certificate."""
    log_successes: bool = False
    """Whether successful calls are logged; they are counted and traced anyway."""


class AdminSettings(SettingsGroup):
    """The admin port: health, readiness, metrics; no secrets, no TLS."""

    listen: Listen = "127.0.0.1:0"


class TelemetrySettings(SettingsGroup):
    """Logs and traces."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str | None = None
    """Where traces go, by OTLP over gRPC; unset switches tracing off."""
    trace_ratio: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of the calls traced that come without a sampled parent."""


class PeerSettings(SettingsGroup):
    """Another service of the suite."""

    target: str
    """A gRPC target, for example `dns:///keyvault:7000`."""
    server_name: str | None = None
    """The name its certificate must carry, when that is not the target's host."""
    tls: TlsSettings | None = None
    """The identity shown to it; unset, the server's own."""


class _StrictEnvSource(EnvSettingsSource):
    """The environment, where a name under the prefix that no field has is refused: a misspelt setting is not silent."""

    @override
    def __call__(self) -> dict[str, Any]:
        prefix = self.env_prefix.lower()
        fields = {name.lower() for name in self.settings_cls.model_fields}
        unknown = sorted(
            name.upper()
            for name in self.env_vars
            if name.lower().startswith(prefix) and name.lower().removeprefix(prefix).split(_NESTED)[0] not in fields
        )
        if unknown:
            message = f"the environment sets what is no setting: {', '.join(unknown)}"
            raise SettingsError(message)
        return super().__call__()


class ServiceSettings(BaseSettings):
    """The root of a service's settings; subclasses set `env_prefix` in their `model_config`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_nested_delimiter=_NESTED, case_sensitive=False, hide_input_in_errors=True
    )

    admin: AdminSettings = AdminSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    _config_file: ClassVar[Path | None] = None

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read what was passed in code, then the environment, then the TOML file."""
        toml = [TomlConfigSettingsSource(settings_cls, cls._config_file)] if cls._config_file else []
        return (init_settings, _StrictEnvSource(settings_cls), *toml)


class SettingsError(Exception):
    """The settings cannot be used; the message says which, and never their values."""


AnySettings = TypeVar("AnySettings", bound=ServiceSettings)


@dataclass(frozen=True, slots=True)
class Invocation(Generic[AnySettings]):
    """How a service was started: the command, and its settings."""

    command: str
    settings: AnySettings


def read(cls: type[AnySettings], *, config: Path | None = None) -> AnySettings:
    """Read settings from the environment and an optional file.

    Raises:
        SettingsError: They are incomplete, wrong, or name what is no setting.
    """
    if config is not None and not config.is_file():
        message = f"--config {config}: no such file"
        raise SettingsError(message)
    # pydantic-settings asks the class for its sources, so the file's name travels on a class made for this one reading.
    body = {"_config_file": config, "__module__": cls.__module__}
    reader: type[AnySettings] = type(cls.__name__, (cls,), body)
    try:
        return reader()
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors())
        message = f"settings: {faults}"
        raise SettingsError(message) from None


def load(
    cls: type[AnySettings], argv: Sequence[str], *, commands: Sequence[str] = ("serve",)
) -> Invocation[AnySettings]:
    """Read the command line and the settings; the first of `commands` is the default.

    `--check-config` validates the settings, says so and ends the process with status 0. Settings that cannot be used
    end it with status 2.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {cls.__module__.partition('.')[0]}")
    parser.add_argument("command", nargs="?", choices=list(commands), default=commands[0])
    parser.add_argument("--config", type=Path, help="TOML file; the environment has precedence")
    parser.add_argument("--check-config", action="store_true", help="validate the settings and exit")
    options = parser.parse_args(list(argv))
    try:
        settings = read(cls, config=options.config)
    except SettingsError as error:
        parser.exit(2, f"{error}\n")
    if options.check_config:
        sys.stdout.write("settings: OK\n")
        parser.exit(0)
    return Invocation(command=options.command, settings=settings)

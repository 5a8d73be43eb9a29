"""How an operator reaches KeyVault, and the exit codes and lines that all commands share."""

from __future__ import annotations

import contextlib
import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import grpc
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from servicekit.channels import open_channel
from servicekit.clock import SystemClock
from servicekit.credentials import CertificateError
from servicekit.identity import TlsFiles
from servicekit.ids import new_uuid7
from servicekit.wire import error_from_rpc

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncIterator, Awaitable, Callable

    Work = Callable[["argparse.Namespace", "Operator"], Awaitable[int]]
    """What a command does; returns its exit code. A subparser names it by `set_defaults(work=…)`."""

DONE: Final = 0
FOUND: Final = 1
"""The command worked, and what it looked for is wrong: a log that does not verify, for one."""
FAILED: Final = 2


class OperatorSettings(BaseSettings):
    """Where KeyVault is and who asks. Environment: `BYOK_OPERATOR_…`; flags win over it."""

    model_config = SettingsConfigDict(env_prefix="BYOK_OPERATOR_", frozen=True, extra="forbid")

    keyvault: str = ""
    """A gRPC target, for example `dns:///keyvault:7000`."""
    server_name: str | None = None
    """The name its certificate must carry, when that is not the target's host."""
    certificate_file: Path | None = None
    private_key_file: Path | None = None
    ca_file: Path | None = None
    actor: Annotated[str, Field(max_length=128)] = ""
    """Who asks, for the audit log. Unset: the name of the system's user."""


class Operator:
    """An open connection in the name of an operator."""

    def __init__(self, channel: grpc.aio.Channel, actor: str) -> None:
        """Speak on `channel`."""
        self.channel = channel
        self.actor = actor

    def stub(self, kind: Callable[[grpc.aio.Channel], Any]) -> Any:
        """Return a stub of one service."""
        return kind(self.channel)

    @staticmethod
    def new_request_id() -> str:
        """Return a fresh request id."""
        return new_uuid7(SystemClock().now())


class UsageError(Exception):
    """The command cannot be run as it was typed; the message says what is missing."""


def add_connection_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags by which KeyVault is reached."""
    parser.add_argument("--keyvault", metavar="TARGET", help="gRPC target (BYOK_OPERATOR_KEYVAULT)")
    parser.add_argument("--server-name", metavar="NAME", help="name in its certificate (BYOK_OPERATOR_SERVER_NAME)")
    parser.add_argument("--certificate-file", metavar="FILE", type=Path, help="BYOK_OPERATOR_CERTIFICATE_FILE")
    parser.add_argument("--private-key-file", metavar="FILE", type=Path, help="BYOK_OPERATOR_PRIVATE_KEY_FILE")
    parser.add_argument("--ca-file", metavar="FILE", type=Path, help="BYOK_OPERATOR_CA_FILE")
    parser.add_argument("--actor", metavar="WHO", help="who asks, for the audit log (BYOK_OPERATOR_ACTOR)")


@contextlib.asynccontextmanager
async def connected(arguments: argparse.Namespace) -> AsyncIterator[Operator]:
    """Open the connection that flags and environment name. Raises UsageError when one is missing."""
    given = {name: getattr(arguments, name) for name in OperatorSettings.model_fields}
    settings = OperatorSettings(**{name: value for name, value in given.items() if value is not None})
    files = (settings.certificate_file, settings.private_key_file, settings.ca_file)
    if not settings.keyvault or None in files:
        raise UsageError("name --keyvault, --certificate-file, --private-key-file, --ca-file; or set BYOK_OPERATOR_…")
    certificate, private_key, authority = (Path(str(each)) for each in files)
    tls = TlsFiles(certificate=certificate, private_key=private_key, ca=authority)
    async with open_channel(settings.keyvault, tls, server_name=settings.server_name) as channel:
        yield Operator(channel, settings.actor or getpass.getuser())


async def perform(arguments: argparse.Namespace, work: Work) -> int:
    """Run a command over a connection; what was refused is said in one line."""
    try:
        async with connected(arguments) as operator:
            return await work(arguments, operator)
    except grpc.aio.AioRpcError as error:
        refused = error_from_rpc(error)
        say_wrong(f"{refused.reason or refused.code.name}: {refused.message}")
    # Anything that is let through ends with Python's own code, 1, which says that the command has found something.
    except (UsageError, CertificateError, OSError) as error:
        say_wrong(str(error))
    except ValidationError as error:
        say_wrong(f"a flag or BYOK_OPERATOR_… does not fit: {error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}")
    return FAILED


def say(line: str = "") -> None:
    """Print a line of the answer."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def say_wrong(line: str) -> None:
    """Print what went wrong."""
    sys.stderr.write(f"keyvault: {line}\n")
    sys.stderr.flush()

"""Runs the embedded suite until it is interrupted: `python -m testkit.stack [--directory .run/stack]`.

Prints where everything listens, where the certificates are, and one call to paste into a shell.
"""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from testkit.errors import TestkitError
from testkit.simulator.vendors import VENDORS, make_key
from testkit.stack.services import Service
from testkit.stack.stack import CLIENT_ROLES, Stack, StackOptions

_CALL = """\
printf %s {secret} | {python} examples/first_call.py \\
  --router localhost:{router} --keyvault localhost:{keyvault} --metering localhost:{metering} \\
  --ca {ca} \\
  --platform {platform} \\
  --edge {edge} \\
  --base-url {base_url}"""


def main() -> None:
    """Run until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m testkit.stack", description=__doc__)
    parser.add_argument(
        "--directory", type=Path, default=Path(".run/stack"), help="where data, logs and certificates go"
    )
    for service in ("keyvaults", "meterings", "routers"):
        parser.add_argument(f"--{service}", type=int, default=1, help="how many replicas")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args()
    try:
        asyncio.run(_serve(options))
    except TestkitError as error:
        parser.exit(1, f"stack: {error}\n")


async def _serve(options: argparse.Namespace) -> None:
    stack_options = StackOptions(
        keyvaults=options.keyvaults,
        meterings=options.meterings,
        routers=options.routers,
        log_level=options.log_level,
    )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with Stack(
        options.directory, options=stack_options, progress=lambda text: print(f"… {text}", flush=True)
    ) as stack:
        print(_description(stack), flush=True)
        await stopped.wait()
        print("… stopping", flush=True)


def _description(stack: Stack) -> str:
    lines = [
        "",
        "The suite is running; stop it with Ctrl-C.",
        "",
        "gRPC with mutual TLS, and the admin port beside it:",
    ]
    lines += [
        f"  {each.service:<9} localhost:{each.grpc_port}   http://localhost:{each.admin_port}/metrics"
        for each in stack.services
    ]
    lines += ["", "Provider simulator, as a key's base_url:"]
    lines += [f"  {vendor:<11} {stack.simulator.base_url(vendor)}" for vendor in VENDORS]
    lines += [f"  control     {stack.simulator.control_url}", "", f"Certificate authority: {stack.ca.ca_file}"]
    for role in CLIENT_ROLES:
        tls = stack.client_tls(role)
        lines += [f"Client certificate of role {role}: {tls.certificate}", f"  its key: {tls.private_key}"]
    lines += [f"Logs: {stack.directory}", "", "A first call, to paste into another shell:", "", _call(stack)]
    return "\n".join(lines)


def _call(stack: Stack) -> str:
    identities = {role: stack.client_tls(role) for role in CLIENT_ROLES}
    return _CALL.format(
        python=sys.executable,
        secret=make_key("openai", "first call"),
        ca=stack.ca.ca_file,
        base_url=stack.simulator.base_url("openai"),
        **{role: f"{tls.certificate} {tls.private_key}" for role, tls in identities.items()},
        **{service.value: stack.service(service).grpc_port for service in Service},
    )


if __name__ == "__main__":
    main()

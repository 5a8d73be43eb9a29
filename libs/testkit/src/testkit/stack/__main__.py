"""Runs the embedded suite until it is interrupted: `python -m testkit.stack [--directory .run/stack]`.

Prints where everything listens, where the certificates are, and one call to paste into a shell.
"""

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from testkit.errors import TestkitError
from testkit.simulator.vendors import VENDORS
from testkit.stack.stack import CLIENT_ROLES, Stack, StackOptions

_CALL = """\
{python} - <<'EOF'
import asyncio, time, uuid
import grpc
from byok.metering.v1 import account_service_pb2 as account, account_service_pb2_grpc as services

async def main():
    read = lambda name: open(name, "rb").read()
    credentials = grpc.ssl_channel_credentials(read("{ca}"), read("{private_key}"), read("{certificate}"))
    async with grpc.aio.secure_channel("localhost:{port}", credentials) as channel:
        now = int(time.time() * 1000).to_bytes(6, "big") + uuid.uuid4().bytes[6:]
        request_id = str(uuid.UUID(bytes=now[:6] + bytes([now[6] & 15 | 112]) + now[7:]))
        print(await services.AccountServiceStub(channel).RegisterAgent(account.RegisterAgentRequest(
            request_id=request_id, acting_for={{"owner_id": "owner-1"}}, actor="me", agent_id="agent-1",
            owner_id="owner-1")))

asyncio.run(main())
EOF"""


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
    tls = stack.client_tls("platform")
    return _CALL.format(
        python=sys.executable,
        ca=tls.ca,
        certificate=tls.certificate,
        private_key=tls.private_key,
        port=stack.service("metering").grpc_port,
    )


if __name__ == "__main__":
    main()

"""Runs the simulator as a process: `python -m testkit.simulator [--fast] [--certificate … --private-key …]`.

Prints one JSON line when it listens: {"event": "ready", "http_port": …, "https_port": …, "control_port": …}. With
`--fast` it answers from canned bytes, for benches; its control endpoint then knows only /totals and /latency.
"""

import argparse
import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import orjson
import uvloop
from aiohttp import web

from servicekit.identity import TlsFiles
from testkit.simulator.addresses import Addresses
from testkit.simulator.fast import CannedAnswers, listen_fast
from testkit.simulator.server import Ports, Simulator, server_context
from testkit.simulator.state import Latency


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m testkit.simulator", description=__doc__)
    parser.add_argument("--certificate", type=Path, help="PEM file; with it, https is served too")
    parser.add_argument("--private-key", type=Path, help="PEM file of the certificate's key")
    parser.add_argument("--fast", action="store_true", help="canned bytes at the highest speed")
    for name in ("http", "https", "control"):
        parser.add_argument(f"--{name}-port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--latency-seconds", type=float, default=0.0, help="how long models think")
    options = parser.parse_args()
    uvloop.run(_serve(options))


async def _serve(options: argparse.Namespace) -> None:
    tls = None
    if options.certificate is not None:
        tls = TlsFiles(certificate=options.certificate, private_key=options.private_key, ca=options.certificate)
    latency = Latency(seconds=options.latency_seconds)
    async with AsyncExitStack() as stack:
        if options.fast:
            addresses = await _start_fast(stack, tls, latency)
        else:
            ports = Ports(http=options.http_port, https=options.https_port, control=options.control_port)
            simulator = await stack.enter_async_context(Simulator(tls, ports=ports))
            simulator.state.latency = latency
            addresses = simulator.addresses
        print(orjson.dumps({"event": "ready"} | msgspec.structs.asdict(addresses)).decode(), flush=True)
        await _stop_signal()


async def _start_fast(stack: AsyncExitStack, tls: TlsFiles | None, latency: Latency) -> Addresses:
    answers = CannedAnswers()
    answers.latency = latency
    http = await listen_fast(answers, None)
    stack.callback(http.close)
    https_port = None
    if tls is not None:
        https = await listen_fast(answers, server_context(tls))
        stack.callback(https.close)
        https_port = https.sockets[0].getsockname()[1]
    runner = web.AppRunner(_fast_control(answers), access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return Addresses(
        http_port=http.sockets[0].getsockname()[1], https_port=https_port, control_port=runner.addresses[0][1]
    )


def _fast_control(answers: CannedAnswers) -> web.Application:
    async def totals(_request: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(answers.totals), content_type="application/json")

    async def set_latency(request: web.Request) -> web.Response:
        answers.latency = msgspec.json.decode(await request.read(), type=Latency)
        return web.Response(status=204)

    application = web.Application()
    application.add_routes([web.get("/totals", totals), web.put("/latency", set_latency)])
    return application


async def _stop_signal() -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()


if __name__ == "__main__":
    main()

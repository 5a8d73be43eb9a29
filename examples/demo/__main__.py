"""Runs the main job of the suite end to end: `make demo`.

Real Postgres, real Redis, the three services as processes talking mutual TLS. The provider is a simulator that speaks
the vendors' wire formats, or the real one where its key is in the environment.
"""

import asyncio
import sys
import tempfile
import time
import uuid
from pathlib import Path

from byok_client.client import ByokClient, Targets
from byok_client.errors import ByokError
from examples.demo.screen import Screen, Stopped
from examples.demo.settings import DemoSettings
from examples.demo.story import KeyOnOffer, Story
from testkit.errors import TestkitError
from testkit.simulator.vendors import make_key
from testkit.stack.stack import Stack


def main() -> None:
    """Tell the story; exit with 0 when it ended as it should."""
    screen = Screen()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="byok-demo-", ignore_cleanup_errors=True) as directory:
        try:
            story = asyncio.run(_run(Path(directory), screen))
        except (ByokError, Stopped, TestkitError) as error:
            screen.last(f"DEMO FAILED {error}")
            sys.exit(1)
    tally = story.tally
    elapsed = time.monotonic() - started
    screen.last(
        f"DEMO OK operations={tally.operations} settled={tally.settled} denied={tally.denied} elapsed={elapsed:.1f}"
    )


async def _run(directory: Path, screen: Screen) -> Story:
    screen.say("Setting up: everything below runs on this machine, and ends with the demo.")
    async with Stack(directory, progress=screen.progress) as stack:
        targets = Targets(
            router=stack.target("router"),
            keyvault=stack.target("keyvault"),
            metering=stack.target("metering"),
            server_name="localhost",
        )
        async with (
            ByokClient(targets, stack.client_tls("platform")) as platform,
            ByokClient(targets, stack.client_tls("edge")) as edge,
        ):
            story = Story(platform=platform, edge=edge, screen=screen, owner=uuid.uuid4().hex[:8])
            await story.tell(_offers(DemoSettings(), stack))
            story.tally.settled = await story.count_settled()
            return story


def _offers(settings: DemoSettings, stack: Stack) -> list[KeyOnOffer]:
    """Return real keys where there are some, and the simulator's for what they do not cover."""
    offers: list[KeyOnOffer] = []
    if settings.anthropic_api_key is not None:
        offers.append(KeyOnOffer(provider="anthropic", secret=settings.anthropic_api_key.get_secret_value()))
    if settings.openai_api_key is not None:
        offers.append(KeyOnOffer(provider="openai", secret=settings.openai_api_key.get_secret_value()))
    else:
        # An OpenAI key covers every operation; Anthropic has no embeddings.
        simulated = make_key("openai", uuid.uuid4().hex)
        offers.append(KeyOnOffer(provider="openai", secret=simulated, base_url=stack.simulator.base_url("openai")))
    return offers


if __name__ == "__main__":
    main()

"""A first call: register an agent, add its owner's key, have content judged on that key.

`make serve` prints the command line for a running stack. In production the first two steps are done once, by the
platform's own registration and by the owner; what remains is `evaluate_guardrail`.
"""

import argparse
import asyncio
import sys
from pathlib import Path

from byok.keyvault.v1.key_service_pb2 import CreateKeyRequest
from byok.keyvault.v1.provider_key_pb2 import KEY_SCOPE_OWNER
from byok.metering.v1.account_service_pb2 import RegisterAgentRequest
from byok.router.v1.operation_service_pb2 import GuardrailVerdict
from byok.router.v1.provider_service_pb2 import ValidateKeyRequest
from byok.type.v1.account_pb2 import Principal
from byok_client.client import ByokClient, Targets
from byok_client.errors import Held
from byok_client.requests import Attribution
from servicekit.identity import TlsFiles

OWNER = Principal(owner_id="owner-1")
AGENT_ID = "agent-1"
PROVIDER = "openai"


async def main() -> None:
    """Make the calls and print what came back."""
    arguments = _arguments()
    targets = Targets(router=arguments.router, keyvault=arguments.keyvault, metering=arguments.metering)
    async with (
        ByokClient(targets, _identity(arguments, "platform")) as platform,
        ByokClient(targets, _identity(arguments, "edge")) as edge,
    ):
        await platform.accounts.register_agent(
            RegisterAgentRequest(acting_for=OWNER, actor="me", agent_id=AGENT_ID, owner_id=OWNER.owner_id)
        )
        await _add_key(edge, secret=sys.stdin.read(), base_url=arguments.base_url)
        try:
            answer = await platform.evaluate_guardrail(
                "How do I repot a cactus?",
                policy_text="No violence, no spam.",
                attribution=Attribution(agent_id=AGENT_ID),
            )
        except Held as held:
            print(f"hold the content: {held.reason} {held.message} (retry not before {held.retry_time})")
            return
    print(GuardrailVerdict.Name(answer.verdict), f"{answer.receipt.usage.cost_nano_usd} nano-USD")


async def _add_key(edge: ByokClient, *, secret: str, base_url: str) -> None:
    created = await edge.keys.create(
        CreateKeyRequest(
            acting_for=OWNER,
            actor="me",
            scope=KEY_SCOPE_OWNER,
            provider=PROVIDER,
            base_url=base_url,
            plaintext=secret.encode(),
        )
    )
    print("added", created.key.key_id, "with fingerprint", created.key.fingerprint)
    tested = await edge.validate_key(ValidateKeyRequest(acting_for=OWNER, actor="me", key_id=created.key.key_id))
    print(tested.explanation)


def _identity(arguments: argparse.Namespace, role: str) -> TlsFiles:
    certificate, private_key = getattr(arguments, role)
    return TlsFiles(certificate=certificate, private_key=private_key, ca=arguments.ca)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Register an agent, add the OpenAI key that standard input holds, and have content judged on it."
    )
    for service in ("router", "keyvault", "metering"):
        parser.add_argument(f"--{service}", required=True, metavar="HOST:PORT", help="where it listens")
    parser.add_argument("--ca", type=Path, required=True, help="the authority of all certificates")
    for role in ("platform", "edge"):
        parser.add_argument(
            f"--{role}", type=Path, nargs=2, required=True, metavar=("CERTIFICATE", "KEY"), help="identity of the role"
        )
    parser.add_argument("--base-url", default="", help="where the provider is; empty means its own address")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main())

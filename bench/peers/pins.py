"""Which peers, in which version, and where they are installed."""

from pathlib import Path
from typing import Final

PLACE: Final = Path(__file__).resolve().parent.parent / ".peers"

LITELLM_VERSION: Final = "1.106.12"
LITELLM_PLACE: Final = PLACE / "litellm"
LITELLM_PROGRAM: Final = LITELLM_PLACE / "bin" / "litellm"

PORTKEY_VERSION: Final = "1.15.2"
PORTKEY_PLACE: Final = PLACE / "portkey"
PORTKEY_PROGRAM: Final = PORTKEY_PLACE / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"

HOW_TO_INSTALL: Final = "`make bench-peers` installs it (needs PyPI and npm)"

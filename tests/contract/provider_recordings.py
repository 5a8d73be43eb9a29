"""Recorded provider traffic, as the contract tests read it: one JSON object a line, a file per provider.

The full set lies beside the repository; a small set of our own, in the same form, is in it. In CI the full set must be
there, because a test that quietly runs on less proves less than it says.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalogue.book import load_catalogue
from catalogue.models import Dialect, Model
from router.domain.routes import Route
from router.domain.wire import WireResponse
from router.providers.registry import Codecs

if TYPE_CHECKING:
    from router.domain.completions import Completion

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "provider_recordings"
OWN = ROOT / "services" / "router" / "tests" / "data" / "recordings"
PROVIDERS = ("anthropic", "openai", "groq", "openrouter", "ollama", "together", "cerebras", "deepseek")
RECEIVED = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
CODECS = Codecs()
CATALOGUE = load_catalogue()


@dataclass(frozen=True)
class Recording:
    """One request and its answer."""

    id: str
    provider: str
    path: str
    request: dict[str, Any]
    status: int
    headers: dict[str, str]
    body: str

    @property
    def is_stream(self) -> bool:
        """Whether the answer came in events."""
        kind = self.headers.get("content-type", "")
        is_named = kind.startswith(("text/event-stream", "application/x-ndjson"))
        # Headers may have been dropped from a recording.
        return is_named or self.body.lstrip().startswith(("data:", "event:", ": ")) or self._is_lines

    @property
    def _is_lines(self) -> bool:
        return self.dialect is Dialect.OLLAMA and "}\n{" in self.body

    @property
    def dialect(self) -> Dialect | None:
        """The dialect of a completion or an embedding; ``None`` for other kinds of call."""
        path = self.path.split("?")[0]
        for ending, dialect in _DIALECTS.items():
            if path.endswith(ending):
                return dialect
        return None

    @property
    def is_embedding(self) -> bool:
        """Whether the call asks for vectors."""
        return self.path.split("?")[0].endswith(("/embeddings", "/api/embed"))

    @property
    def route(self) -> Route:
        """The route by which the call would be made."""
        model_id = str(self.request.get("model", ""))
        model = CATALOGUE.model(self.provider, model_id)
        return Route(
            provider=self.provider,
            dialect=self.dialect or Dialect.OPENAI_CHAT,
            base_url="https://provider.test",
            model=model or Model(provider=self.provider, model_id=model_id, is_reviewed=False),
        )

    @property
    def response(self) -> WireResponse:
        """The answer as a transport hands it on."""
        return WireResponse(status=self.status, headers=self.headers, body=self.body.encode(), receive_time=RECEIVED)

    def events(self) -> list[dict[str, Any]]:
        """Return the JSON of a stream's events, cut by the simplest means: every recording is well formed."""
        if self.headers.get("content-type", "").startswith("application/x-ndjson") or self._is_lines:
            return [json.loads(line) for line in self.body.split("\n") if line.strip()]
        # Only the line ends of the standard end a line; a model's text may hold others.
        lines = [line[5:].strip() for line in self.body.replace("\r\n", "\n").split("\n") if line.startswith("data:")]
        return [json.loads(line) for line in lines if line not in {"[DONE]", ""}]


_DIALECTS = {
    "/v1/messages": Dialect.ANTHROPIC_MESSAGES,
    "/completions": Dialect.OPENAI_CHAT,
    "/responses": Dialect.OPENAI_RESPONSES,
    "/embeddings": Dialect.OPENAI_CHAT,
    "/api/chat": Dialect.OLLAMA,
    "/api/generate": Dialect.OLLAMA,
    "/api/embed": Dialect.OLLAMA,
}


def folder() -> Path:
    """Return where the recordings are: the full set, or our own small one outside CI."""
    if SHARED.is_dir():
        return SHARED
    in_ci = os.environ.get("CI") == "true"  # noqa: TID251 - the one thing that only the environment can say
    assert not in_ci, f"{SHARED} is missing; in CI the full set of recordings must be there"
    return OWN


def load(provider: str, *, where: Path | None = None) -> list[Recording]:
    """Return a provider's recordings; none where the set has no file for it."""
    file = (where or folder()) / f"{provider}.jsonl"
    if not file.is_file():
        return []
    with file.open(encoding="utf-8") as lines:
        return [_recording(json.loads(line)) for line in lines if line.strip()]


def parse(recording: Recording, *, chunk_bytes: int | None = None) -> Completion:
    """Return what the codec makes of an answer, a stream being fed whole or in chunks of a size."""
    codec = CODECS.chat(recording.route)
    if not recording.is_stream:
        return codec.parse_chat(recording.response, recording.route)
    decoder = codec.decode_stream(recording.response, recording.route)
    data = recording.response.body
    step = chunk_bytes or len(data) or 1
    for start in range(0, len(data), step):
        decoder.feed(data[start : start + step])
    return decoder.finish()


def _recording(row: dict[str, Any]) -> Recording:
    return Recording(
        id=row["id"],
        provider=row["provider"],
        path=row["path"],
        request=row["request"] or {},
        status=row["status"],
        headers={name.lower(): value for name, value in row["response_headers"].items()},
        body=row["response_body"],
    )

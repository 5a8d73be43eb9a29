"""Takes secrets out of whatever is about to be logged. A net below the rule that secrets are never given to a log.

Two nets: by the name of a field (`api_key`, `authorization`, …), whatever its value; and by the shape of text,
wherever it stands, exception text included: keys of the vendors, bearer tokens, passwords in URLs, long mixed or
hexadecimal runs. It redacts too much rather than too little; UUIDs, which operators search for, stay.
"""

import functools
import re
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from enum import Enum
from pathlib import PurePath
from typing import Final

REDACTED: Final = "[redacted]"

_SECRET_NAMES: Final = re.compile(
    r"(?:^|[_.-])(?:api[_-]?key|apikey|authorization|auth|cookie|credentials?|dek|dsn|kek|password|passwd|plaintext"
    r"|private[_-]?key|secret|secrets|signature|token|bearer|root[_-]?key|answer[_-]?key)$",
    re.IGNORECASE,
)
# A name like `input_tokens` counts and must stay readable; `token` alone is a credential.

_SHAPES: Final = re.compile(
    r"""
      (?P<header>(?:(?i:bearer)|Basic)[ ]+)[^\s"',;]{6,}
    | (?P<named>(?i:api[-_ ]?key|x-goog-api-key|authorization|password|passwd|secret|token)["']?[ ]*[:=][ ]*["']?)
      (?!\[redacted\])(?!(?i:bearer|basic)[ ])[^\s"',;&]{6,}
    | (?P<query>[?&](?:key|api_key|access_token|token|sig|signature)=)(?:(?i:bearer)[ ]+)?[^&\s"'#]+
    | (?P<userinfo>://)[^/\s:@"']*:[^@\s"']+(?=@)
    | (?<![A-Za-z0-9])(?:gsk|csk|xai|pplx|fw|hf|tgp|pa|al|nvapi)[-_][A-Za-z0-9_.-]{16,}
    | (?<![A-Za-z0-9])sk-[A-Za-z0-9_.-]{6,}
    | (?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{12,}
    | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----.*?(?:-----END[ ][A-Z ]*PRIVATE[ ]KEY-----|\Z)
    | (?P<run>(?<![A-Za-z0-9+/=_-])[A-Za-z0-9+/_-]{32,}={0,2})
    """,
    re.VERBOSE | re.DOTALL,
)
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
# 32 hexadecimal digits are a trace id; the vendors' hexadecimal keys have 64.
_HEX: Final = re.compile(r"[0-9a-f]{33,}", re.IGNORECASE)
# Shorter than any secret worth the name.
_KEPT_LENGTH: Final = 8
_DEPTH_MAX: Final = 8
_TEXT_MAX: Final = 32_768

# Texts that held nothing: methods, callers, event names come in every line, and looking again is most of a line's cost.
# Text that was redacted is never kept.
_CLEAN_MAX: Final = 4_096
_CLEAN_LENGTH_MAX: Final = 200
_clean: set[str] = set()


def redact_text(text: str) -> str:
    """Return `text` without what looks like a secret, cut to a length that a log line can have."""
    if len(text) < _KEPT_LENGTH or text in _clean or _UUID.fullmatch(text):
        return text
    if len(text) > _TEXT_MAX:
        # The cut comes first: a secret cut in two is still caught by what is left of it, or is no longer there.
        text = text[:_TEXT_MAX] + " [cut]"
    redacted = _SHAPES.sub(_replace, text)
    if redacted == text and len(text) <= _CLEAN_LENGTH_MAX:
        if len(_clean) >= _CLEAN_MAX:
            _clean.clear()
        _clean.add(text)
    return redacted


def redact_value(value: object, *, depth: int = 0) -> object:
    """Return what may be logged of `value`.

    Objects that are neither plain data nor known to be harmless are named by their type only, because `str()` of a
    request message would print its secret fields.
    """
    kind = type(value)
    if kind is str:
        return redact_text(value)  # type: ignore[arg-type]  # mypy does not narrow by `type() is`.
    if value is None or kind in {int, float, bool}:
        return value
    if depth >= _DEPTH_MAX:
        return "[too deep]"
    if isinstance(value, Mapping):
        return {redact_text(str(name)): redact_field(str(name), each, depth=depth + 1) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact_value(each, depth=depth + 1) for each in value]
    return _describe(value)


def redact_field(name: str, value: object, *, depth: int = 0) -> object:
    """Return what may be logged of a field, judged by its name too."""
    if _is_secret_name(name) and value is not None and not isinstance(value, bool):
        return REDACTED
    return redact_value(value, depth=depth)


@functools.lru_cache(maxsize=1_024)
def _is_secret_name(name: str) -> bool:
    return _SECRET_NAMES.search(name) is not None


def _describe(value: object) -> object:
    if isinstance(value, BaseException):
        return redact_text(f"{type(value).__name__}: {value}")
    if isinstance(value, (str, PurePath)):
        return redact_text(str(value))
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"[{len(value)} bytes]"
    return f"<{type(value).__name__}>"


def _replace(found: re.Match[str]) -> str:
    run = found["run"]
    if run is not None and not _is_suspicious(run):
        return run
    kept = found["header"] or found["named"] or found["query"] or found["userinfo"] or ""
    return kept + REDACTED


def _is_suspicious(run: str) -> bool:
    """Tell a key from a path, an identifier or a UUID: keys mix cases and digits, or are long and hexadecimal."""
    if _HEX.search(run):
        return True
    rest = _UUID.sub("", run)
    return (
        any(each.isdigit() for each in rest)
        and any(each.isupper() for each in rest)
        and any(each.islower() for each in rest)
    )

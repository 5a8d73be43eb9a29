"""Secrets in files that an orchestrator mounts: root keys, PINs, tokens."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from keyvault.domain.errors import RootKeyUnusableError

if TYPE_CHECKING:
    from pathlib import Path

_FILE_BYTES_MAX: Final = 16 * 1024


def read_secret_file(path: Path, *, setting: str, is_private: bool = True) -> bytes:
    """Return what is in the file that `setting` names, up to a bound that is far above what belongs there.

    Args:
        path: the file.
        setting: what an operator calls it.
        is_private: whether a file that everybody can read is refused; not so a token that Kubernetes mounts.

    Raises:
        RootKeyUnusableError: the file is missing, empty, too long, or readable by everybody.
    """
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        message = f"the file of {setting} cannot be read; check the setting and its mount"
        raise RootKeyUnusableError(message, errno=error.errno or 0) from error
    if is_private and mode & stat.S_IRWXO:
        message = f"the file of {setting} is open to everybody; let only its owner and group read it (chmod 0440)"
        raise RootKeyUnusableError(message)
    if not content.strip() or len(content) > _FILE_BYTES_MAX:
        raise RootKeyUnusableError(f"the file of {setting} must hold the secret and nothing else")
    return content


def read_secret_line(path: Path, *, setting: str, is_private: bool = True) -> str:
    """Return the one line of text in the file that `setting` names. Raises RootKeyUnusableError, as above."""
    content = read_secret_file(path, setting=setting, is_private=is_private)
    try:
        line = content.decode().strip()
    except UnicodeDecodeError:
        line = ""
    if not line or not line.isprintable():
        raise RootKeyUnusableError(f"the file of {setting} must hold one line of text") from None
    return line

"""Certificates as they lie on disk now: read, checked, and noticed when they are replaced.

A replacement is taken only when its certificate and key belong together: files that are swapped one after the other
would otherwise break every handshake in between.
"""

import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from typing_extensions import override

from servicekit.identity import TlsFiles

_Fingerprint = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """The contents of `TlsFiles`, in PEM, and when the certificate ends. `private_key` is never printed."""

    certificate: bytes
    private_key: bytes
    ca: bytes
    expires: datetime

    @override
    def __repr__(self) -> str:
        """Return the text without the key."""
        return f"TlsMaterial(expires={self.expires.isoformat()})"


class CertificateError(Exception):
    """The files of this process's identity cannot be used."""


class CertificateFiles:
    """The newest usable contents of the files. Safe to use from gRPC's threads, which ask at each handshake."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            CertificateError: They cannot be read, or do not belong together.
        """
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._fingerprint()
        self._material = _read(files)
        self.reload_failures = 0
        self.reloads = 0

    @property
    def material(self) -> TlsMaterial:
        """The contents in use."""
        return self._material

    def refresh(self) -> TlsMaterial | None:
        """Return the new contents when the files were replaced by usable ones since the last call, else None."""
        with self._lock:
            try:
                found = self._fingerprint()
                if found == self._seen:
                    return None
                material = _read(self._files)
            except CertificateError:
                # What was read before goes on serving; the files may be half-way through their replacement.
                self.reload_failures += 1
                return None
            self._seen = found
            self._material = material
            self.reloads += 1
            return material

    def _fingerprint(self) -> _Fingerprint:
        try:
            stats = [path.stat() for path in (self._files.certificate, self._files.private_key, self._files.ca)]
        except OSError as error:
            raise CertificateError(f"a file of the TLS identity cannot be read: {error}") from None
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)


def _read(files: TlsFiles) -> TlsMaterial:
    certificate, private_key, ca = (_bytes(path) for path in (files.certificate, files.private_key, files.ca))
    try:
        leaf = x509.load_pem_x509_certificates(certificate)[0]
        key = serialization.load_pem_private_key(private_key, password=None)
        x509.load_pem_x509_certificates(ca)
    except (ValueError, TypeError, IndexError):
        # The parser's own words may quote the file, and one of these files is a key.
        raise CertificateError(
            f"{files.certificate}, {files.private_key} and {files.ca} must be a certificate chain, "
            "its unencrypted key and a CA, in PEM"
        ) from None
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    der = serialization.Encoding.DER
    if leaf.public_key().public_bytes(der, spki) != key.public_key().public_bytes(der, spki):
        raise CertificateError(f"{files.private_key} is not the key of {files.certificate}")
    return TlsMaterial(certificate=certificate, private_key=private_key, ca=ca, expires=leaf.not_valid_after_utc)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"a file of the TLS identity cannot be read: {error}") from None

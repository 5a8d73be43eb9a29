"""Certificates carry what their names say, and TLS itself agrees."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from servicekit.identity import TlsFiles
from testkit.pki import ThrowawayCa, service_uri


def _names(files: TlsFiles) -> x509.SubjectAlternativeName:
    certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


def test_a_good_certificate_has_one_identity_and_host_names(throwaway_ca: ThrowawayCa) -> None:
    """One URI, DNS names beside it, a key that only its owner may read."""
    files = throwaway_ca.issue("router")
    assert _names(files).get_values_for_type(x509.UniformResourceIdentifier) == [
        "spiffe://byok.local/ns/byok/sa/router"
    ]
    assert _names(files).get_values_for_type(x509.DNSName) == ["localhost", "router"]
    assert files.private_key.stat().st_mode & 0o077 == 0


def test_bad_certificates_are_bad_in_one_way_each(throwaway_ca: ThrowawayCa) -> None:
    """Each attack's certificate lacks or forges exactly one thing."""
    uri = x509.UniformResourceIdentifier
    assert _names(throwaway_ca.issue_without_uri("router")).get_values_for_type(uri) == []
    assert len(_names(throwaway_ca.issue_two_uris("router", "platform")).get_values_for_type(uri)) == 2
    forged = _names(throwaway_ca.issue_uri_in_dns("router"))
    assert forged.get_values_for_type(uri) == []
    assert service_uri("router") in forged.get_values_for_type(x509.DNSName)
    forged = _names(throwaway_ca.issue_uri_in_email("router"))
    assert forged.get_values_for_type(uri) == []
    assert service_uri("router") in forged.get_values_for_type(x509.RFC822Name)
    assert _names(throwaway_ca.issue_without_dns("router")).get_values_for_type(x509.DNSName) == []
    expired = x509.load_pem_x509_certificate(throwaway_ca.issue_expired("router").certificate.read_bytes())
    assert expired.not_valid_after_utc < datetime.now(UTC)


def test_another_authority_is_not_trusted(throwaway_ca: ThrowawayCa, tmp_path: Path) -> None:
    """A handshake succeeds under this authority and fails under another."""
    stranger = ThrowawayCa(tmp_path, name="stranger")
    _handshake(throwaway_ca.issue("router"), throwaway_ca.ca_file)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(stranger.issue("router"), throwaway_ca.ca_file)


def _handshake(server_files: TlsFiles, trusted: Path) -> None:
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(server_files.certificate, server_files.private_key)
    client_context = ssl.create_default_context(cafile=str(trusted))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname="localhost")
    for _ in range(4):
        done = [_step(client), _step(server)]
        if all(done):
            return
    pytest.fail("the handshake did not end")


def _step(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True

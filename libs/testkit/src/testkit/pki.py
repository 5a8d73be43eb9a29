"""A throw-away certificate authority, good certificates for every role, and bad ones for attacks.

A server certificate needs a DNS name beside its identity: gRPC clients refuse a URI alone.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from servicekit.identity import TlsFiles

_LIFE = timedelta(days=7)
# Machines of one test run may disagree about the time by a little.
_SKEW = timedelta(minutes=5)
_LOCAL_NAMES = ("localhost",)
_LOCAL_ADDRESSES = ("127.0.0.1", "::1")
TRUST_DOMAIN = "byok.local"


def service_uri(service: str, *, namespace: str = "byok") -> str:
    """Return the identity of a service account, as the platform's certificates carry it."""
    return f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{service}"


class ThrowawayCa:
    """A certificate authority whose key lives as long as its folder."""

    def __init__(self, directory: Path, *, name: str = "BYOK throw-away CA") -> None:
        """Make the authority's key and certificate."""
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._make_authority()
        self._serial = 0
        self.ca_file = directory / "ca.pem"
        self.ca_file.write_bytes(_pem(self._certificate))

    def issue(
        self,
        service: str,
        *,
        uri: str | None = None,
        dns: Sequence[str] | None = None,
        life: timedelta = _LIFE,
    ) -> TlsFiles:
        """Issue a certificate with the service's identity, good for both ends of a connection.

        Args:
            service: name of the service account, and of the files.
            uri: the identity; by default `spiffe://byok.local/ns/byok/sa/<service>`.
            dns: host names; by default localhost and the service's own name.
            life: how long it is good for.
        """
        names = [
            x509.UniformResourceIdentifier(uri or service_uri(service)),
            *_host_names([*_LOCAL_NAMES, service] if dns is None else dns),
        ]
        return self._issue(service, names, life=life)

    def issue_names(
        self,
        common_name: str,
        names: Sequence[x509.GeneralName],
        *,
        start: datetime | None = None,
        stem: str = "",
        alternative_names: x509.ExtensionType | None = None,
    ) -> TlsFiles:
        """Issue a certificate with just these alternative names, in files named by `stem` or its common name.

        `alternative_names` stands for all of them: the extension as it shall be, for what is no proper name.
        """
        return self._issue(stem or common_name, names, common_name=common_name, start=start, raw=alternative_names)

    def issue_self_signed(self, service: str) -> TlsFiles:
        """Issue a certificate with a service's identity that nobody but its own key has signed."""
        return self._issue(f"{service}-self-signed", _identity_names(service), is_self_signed=True)

    def issue_expired(self, service: str) -> TlsFiles:
        """Issue a certificate that was good until yesterday."""
        return self._issue(
            f"{service}-expired",
            _identity_names(service),
            life=timedelta(days=1),
            start=datetime.now(UTC) - timedelta(days=2),
        )

    def issue_without_uri(self, service: str) -> TlsFiles:
        """Issue a certificate that carries host names but no identity."""
        return self._issue(f"{service}-no-uri", _host_names([*_LOCAL_NAMES, service]))

    def issue_two_uris(self, service: str, other: str) -> TlsFiles:
        """Issue a certificate that claims to be two services at once."""
        return self._issue(
            f"{service}-two-uris", [*_identity_names(service), x509.UniformResourceIdentifier(service_uri(other))]
        )

    def issue_uri_in_dns(self, service: str) -> TlsFiles:
        """Issue a certificate that carries a service's identity only as the text of a host name."""
        return self._issue(f"{service}-uri-in-dns", [x509.DNSName(service_uri(service)), *_host_names(_LOCAL_NAMES)])

    def issue_uri_in_email(self, service: str) -> TlsFiles:
        """Issue a certificate that carries a service's identity only as the text of an e-mail address."""
        return self._issue(
            f"{service}-uri-in-email", [x509.RFC822Name(service_uri(service)), *_host_names(_LOCAL_NAMES)]
        )

    def issue_without_dns(self, service: str) -> TlsFiles:
        """Issue a certificate with an identity but no host name."""
        return self._issue(f"{service}-no-dns", [x509.UniformResourceIdentifier(service_uri(service))])

    def _issue(  # noqa: PLR0913 (each is one way in which a certificate can be bad; keyword-only)
        self,
        file_name: str,
        names: Sequence[x509.GeneralName],
        *,
        life: timedelta = _LIFE,
        start: datetime | None = None,
        common_name: str = "",
        raw: x509.ExtensionType | None = None,
        is_self_signed: bool = False,
    ) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        begin = start or datetime.now(UTC) - _SKEW
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name or file_name)])
        builder = _builder(subject, subject if is_self_signed else self._name, key.public_key(), begin, begin + life)
        if names or raw is not None:
            builder = builder.add_extension(raw or x509.SubjectAlternativeName(names), critical=False)
        certificate = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(key if is_self_signed else self._key, hashes.SHA256())
        )
        self._serial += 1
        stem = f"{file_name}-{self._serial}"
        files = TlsFiles(
            certificate=self._directory / f"{stem}.pem",
            private_key=self._directory / f"{stem}-key.pem",
            ca=self.ca_file,
        )
        files.certificate.write_bytes(_pem(certificate))
        files.private_key.touch(mode=0o600)
        files.private_key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def _make_authority(self) -> x509.Certificate:
        begin = datetime.now(UTC) - _SKEW - timedelta(days=3)
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            _builder(self._name, self._name, self._key.public_key(), begin, begin + timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _identity_names(service: str) -> list[x509.GeneralName]:
    return [x509.UniformResourceIdentifier(service_uri(service)), *_host_names([*_LOCAL_NAMES, service])]


def _host_names(dns: Sequence[str]) -> list[x509.GeneralName]:
    addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in _LOCAL_ADDRESSES]
    return [*(x509.DNSName(each) for each in dns), *addresses]


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)

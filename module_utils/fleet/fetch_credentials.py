"""A token and a certificate for one run, with which hosts of the fleet copy from each other. Runs on the controller."""

from __future__ import annotations

import datetime
import secrets
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# A copy of 140 GB over a slow link takes hours; nobody renews the certificate of a run.
_LIFETIME = datetime.timedelta(days=2)


class PeerCredentials(NamedTuple):
    """What the serving host gets, and (without the key) those who copy from it."""

    token: str
    certificate: str
    key: str


def make_credentials(now: datetime.datetime) -> PeerCredentials:
    """New credentials. Clocks of hosts may differ from ``now`` by an hour."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "l40s-fleet checkpoint copy")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return PeerCredentials(secrets.token_urlsafe(32), certificate.public_bytes(pem).decode(), private.decode())

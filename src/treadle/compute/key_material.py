"""Making keys, and looking into them. Imported when a key is: the library takes 8 MB of memory."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from treadle.compute.keypairs import SSH
from treadle.errors import InvalidInput

BITS = 2048
CERTIFICATE_DAYS = 3650
PUBLIC_KEY_MAX = 65535
_USER_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
"""Microsoft's user principal name, by which Windows finds whose certificate it is."""


@dataclass(frozen=True, slots=True)
class Fresh:
    """A new pair, to be handed out once. An x509 private key is PKCS #12 in base 64."""

    public_key: str
    private_key: str


def fingerprint(type: str, public_key: str) -> str:
    """OpenStack's: MD5 of an SSH key, SHA-1 of a certificate, in hex with colons.

    Errors: `InvalidInput` where it is no such key.
    """
    if len(public_key) > PUBLIC_KEY_MAX:
        raise InvalidInput("public_key", public_key, f"at most {PUBLIC_KEY_MAX} characters")
    try:
        if type == SSH:
            raw = hashlib.md5(_ssh_key(public_key), usedforsecurity=False).digest()
        else:
            certificate = x509.load_pem_x509_certificate(public_key.encode())
            raw = certificate.fingerprint(hashes.SHA1())
    except (ValueError, TypeError, UnsupportedAlgorithm, binascii.Error) as error:
        raise InvalidInput(
            "public_key", public_key, "Keypair data is invalid: failed to generate fingerprint"
        ) from error
    return raw.hex(":")


def _ssh_key(line: str) -> bytes:
    """The key itself out of a line as in authorized_keys. Errors: `ValueError` and the like."""
    text = line.strip()
    if len(text.splitlines()) != 1:
        raise ValueError("a key is one line")
    serialization.load_ssh_public_key(text.encode())
    return base64.b64decode(text.split()[1], validate=True)


def generate(type: str, user_id: str) -> Fresh:
    """Make a pair. It takes a tenth of a second of one core: not on an event loop."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    if type == SSH:
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        return Fresh(f"{public.decode()} Generated-by-Treadle", private.decode())
    certificate = _certificate(key, user_id)
    bundle = pkcs12.serialize_key_and_certificates(
        None, key, certificate, None, serialization.NoEncryption()
    )
    return Fresh(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        base64.b64encode(bundle).decode(),
    )


def _certificate(key: rsa.RSAPrivateKey, user_id: str) -> x509.Certificate:
    """A certificate with which the user can log in to Windows, signed by itself."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user_id[:64])])
    principal = f"{user_id}@localhost".encode()[:120]
    begin = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin).not_valid_after(begin + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([
            # A DER UTF8String: its tag, its length, its bytes.
            x509.OtherName(_USER_NAME, bytes([12, len(principal)]) + principal),
        ]), critical=False)
        .sign(key, hashes.SHA256())
    )

"""The worker's certificate: the operator's, or one made for this machine and kept."""

from __future__ import annotations

import datetime
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.settings import Settings
from stream.errors import InvalidInput

if TYPE_CHECKING:
    from cryptography import x509

log = logging.getLogger(__name__)

VALID_FOR: Final = datetime.timedelta(days=397)
"""As long as browsers accept."""
RENEWED_BEFORE: Final = datetime.timedelta(days=14)


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """The context to listen with; None without TLS. Raises `InvalidInput` for files that cannot be used."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if settings.self_signed:
        certificate = self_signed(cache_folder(), names_of_this_machine(settings.host))
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (OSError, ValueError) as error:
        # ssl.SSLError is an OSError.
        files = f"the certificate {certificate}" + (f" and key {key}" if key else "")
        text = f"{files} cannot be used: {error}"
        raise InvalidInput(text, field="tls_certificate") from None
    return context


def _no_password() -> str:
    raise ValueError("the key has a password; give one without")


def cache_folder() -> Path:
    """Where this user's certificate is kept (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "headrace" / "tls"


def names_of_this_machine(host: str) -> list[str]:
    """Under which names and addresses the worker may be asked when it listens on ``host``."""
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname(), *_outward_addresses()]
    if host not in ("0.0.0.0", "::"):
        names.append(host)
    return list(dict.fromkeys(name.lower() for name in names if name and name.isascii()))


def _outward_addresses() -> list[str]:
    """The addresses of the interfaces that lead out; nothing is sent to find them."""
    addresses = []
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))
                addresses.append(str(probe.getsockname()[0]))
        except OSError:
            # No route of that family.
            pass
    return addresses


def self_signed(folder: Path, names: Sequence[str]) -> Path:
    """A PEM file in ``folder`` with a key and its certificate for ``names``.

    Made anew when it is missing, near its end or for others. Raises `InvalidInput` when the folder cannot be
    written.
    """
    path = folder / "headrace.pem"
    if _is_good(path, names):
        return path
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, _make(names))
    except OSError as error:
        text = f"no certificate can be kept in {folder}: {error.strerror}"
        raise InvalidInput(text, field="self_signed") from None
    log.info("made a certificate for %s: %s", ", ".join(names), path)
    return path


def _is_good(path: Path, names: Sequence[str]) -> bool:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(path)
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    covered = {str(name.value) for name in alternatives}
    left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return covered.issuperset(names) and left > RENEWED_BEFORE


def _make(names: Sequence[str]) -> bytes:
    """A certificate for ``names`` signed with its own new key (P-256), after that key, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Headrace on this machine")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private + certificate.public_bytes(encoding)


def _general_name(name: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all, and for this user alone."""
    partial = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    partial.replace(path)

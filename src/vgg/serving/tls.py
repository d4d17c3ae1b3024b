"""TLS for the HTTP and the gRPC port: the server's certificate and key, which can be renewed while it serves."""

import logging
import ssl
import time
from contextlib import suppress
from pathlib import Path

from ..errors import Error
from ..files import reason

log = logging.getLogger("vgg.serving")


class Certificate:
    """A certificate and its private key, from PEM files.

    Raises:
        Error: a file can't be read, they don't belong together, the key is encrypted, or the certificate is not valid now.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self.pair = b"", b""  # the key and the certificate, as gRPC takes them
        self.context = _context()  # of new connections
        self.expires = ""
        self._load()

    def reload(self) -> None:
        """Use the renewed files for new connections. If they are not valid, log why and keep the old ones."""
        try:
            self._load()
        except Error as error:
            log.error("the TLS certificate could not be reloaded", extra={"error": str(error)})
        else:
            log.info("reloaded the TLS certificate", extra={"expires": self.expires})

    def _load(self) -> None:
        certificate = _read(self._certificate, b"-----BEGIN CERTIFICATE-----", "certificate")
        key = _read(self._key, b"PRIVATE KEY-----", "private key")
        trial = _context()
        self._load_into(trial)
        self.expires = self._check(trial)
        self._load_into(self.context)
        self.pair = key, certificate

    def _load_into(self, context: ssl.SSLContext) -> None:
        def password() -> str:
            raise Error(f"{self._key}: the private key is encrypted; decrypt it with `openssl pkey -in FILE -out NEW_FILE`")

        try:
            context.load_cert_chain(self._certificate, self._key, password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise Error(
                    f"{self._key}: not the private key of {self._certificate}, whose first certificate must be the server's"
                ) from None
            raise Error(f"{self._certificate}: invalid certificate or key: {_words(error)}") from None
        except OSError as error:
            raise Error(f"{self._certificate}: {reason(error)}") from None

    def _check(self, context: ssl.SSLContext) -> str:
        """When the certificate expires. Raises Error if a client that trusts it would refuse it."""
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname = False
        trusting.load_verify_locations(self._certificate)
        trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        upward, downward = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusting.wrap_bio(downward, upward)
        server = context.wrap_bio(upward, downward, server_side=True)
        try:
            for side in (client, server, client, server):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        except ssl.SSLCertVerificationError as error:
            raise Error(f"{self._certificate}: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise Error(f"{self._certificate}: invalid certificate or key: {_words(error)}") from None
        seconds = ssl.cert_time_to_seconds(str((client.getpeercert() or {})["notAfter"]))
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def _read(path: Path, mark: bytes, name: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    if mark not in content:
        raise Error(f"{path}: no {name} in PEM format")
    return content


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")

"""Whether files for TLS can be used: asked before anything is sent, since gRPC only says that it cannot connect."""

from __future__ import annotations

import ssl
from pathlib import Path


def certificate_fault(cert: str | Path, key: str | Path) -> str | None:
    """Why a certificate and its key cannot be used; None where they can."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
    except (OSError, ValueError) as error:
        return _text(error)
    return None


def authorities_fault(ca: str | Path) -> str | None:
    """Why a file of authorities cannot be used; None where it can."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
    except (OSError, ValueError) as error:
        return _text(error)
    return None


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask at the terminal


def _text(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error)

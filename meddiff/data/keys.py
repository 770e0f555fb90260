"""Pseudonyms, and the secret key that makes them: without it nobody can try out names until one fits."""

import hashlib
import hmac
import logging
import os
import secrets
from pathlib import Path

from meddiff.errors import ManifestError

log = logging.getLogger(__name__)

MIN_KEY_BYTES = 16
NEW_KEY_BYTES = 32


def pseudonym(key: bytes, patient_id: str) -> str:
    """`P` and 12 hex digits of HMAC-SHA256: the same for one patient under one key, unrelated under another.

    >>> pseudonym(b"sixteen bytes or", "anyone")
    'Paf06955e44dc'
    """
    return "P" + hmac.new(key, patient_id.encode(), hashlib.sha256).hexdigest()[:12]


def default_key_path() -> Path:
    """`$MEDDIFF_KEY_FILE`, else `meddiff/pseudonym.key` in the user's configuration folder."""
    named = os.environ.get("MEDDIFF_KEY_FILE")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(named) if named else config / "meddiff" / "pseudonym.key"


def load_key(path: Path | None = None) -> bytes:
    """The pseudonym key in a file, made there when the file does not exist; without a path, the user's default key.

    ManifestError where others can read the file, or it holds fewer than 16 bytes.
    """
    path = default_key_path() if path is None else Path(path)
    try:
        if not path.exists():
            _make(path)
        _refuse_readable_by_others(path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise ManifestError(
            f"{path}: the pseudonym key cannot be read or made ({error}). Name another file with `--key FILE`."
        ) from error
    if len(key) < MIN_KEY_BYTES:
        raise ManifestError(
            f"{path}: holds {len(key)} bytes, a pseudonym key needs at least {MIN_KEY_BYTES}. "
            "Name a file that does not exist, and a key is made there."
        )
    return key


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(NEW_KEY_BYTES) + "\n")
    log.info("made the pseudonym key %s; keep it, and keep it private: the same key gives the same pseudonyms", path)


def others_can_read(path: Path) -> bool:
    """Whether a file is open to anyone but its owner."""
    return os.name == "posix" and bool(path.stat().st_mode & 0o077)


def _refuse_readable_by_others(path: Path) -> None:
    if others_can_read(path):
        raise ManifestError(
            f"{path}: others can read this key (mode {path.stat().st_mode & 0o777:03o}), and with it find out who a pseudonym "
            f"is. Run `chmod 600 {path}`."
        )

"""Encryption at rest: a folder as one file that nobody reads, changes, shortens or reorders without the key.

AES-256-GCM over chunks in the manner of STREAM (Hoang, Reyhanitabar, Rogaway and Vizar 2015): each file has a key of its own,
derived from the secret and a random salt (HKDF, RFC 5869); a chunk's nonce is its number and whether it is the last. What is
read out of a file is authentic chunk by chunk; that nothing is missing is known at its end, so a folder appears only then.

The salt is random: the same folder does not give the same bytes twice, which is the one exception to that rule.
"""

import hashlib
import io
import os
import secrets
import shutil
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from meddiff.data.keys import others_can_read
from meddiff.errors import PrivacyError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"meddiff AES-256-GCM 1\n"
SALT, TAG = 32, 16  # bytes
CHUNK = 1 << 20  # bytes of plain text
SECRET = 32  # bytes
FACTS = "the file was changed or cut, or this is not its key"


def load_secret(path: Path, *, make: bool = False) -> bytes:
    """The 32-byte secret in a file of 64 hex digits, made there with mode 0600 if `make` and it is not there.

    PrivacyError where it is missing, is no secret, or others can read it.
    """
    try:
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(secrets.token_hex(SECRET) + "\n")
        if others_can_read(path):
            raise PrivacyError(
                f"{path}: others can read this key (mode {path.stat().st_mode & 0o777:03o}), and with it all that it encrypts. "
                f"Run `chmod 600 {path}`, and think of who may have read it."
            )
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PrivacyError(f"{path}: the key cannot be read or made ({error}). Name its file with --key.") from error
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != SECRET:
        raise PrivacyError(
            f"{path}: is no encryption key: {2 * SECRET} hex digits are expected. Name the file that `meddiff encrypt` made."
        )
    return secret


def _cipher(secret: bytes, head: bytes) -> "AESGCM":
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise PrivacyError("Encryption needs the package cryptography: pip install 'meddiff[encrypt]'") from error
    return AESGCM(HKDF(algorithm=SHA256(), length=SECRET, salt=head[len(MAGIC) :], info=MAGIC).derive(secret))


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


class Sealing(io.RawIOBase):
    """Write-only: what is written goes encrypted into `file`. Without `finish` the result is refused as cut."""

    def __init__(self, file: BinaryIO, secret: bytes) -> None:
        self.file, self.head = file, MAGIC + secrets.token_bytes(SALT)
        self.cipher = _cipher(secret, self.head)
        self.number, self.kept = 0, bytearray()
        file.write(self.head)

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        """Take bytes; a whole chunk is written once more follows it."""
        data = memoryview(content).cast("B")  # type: ignore[arg-type]
        self.kept += data
        while len(self.kept) > CHUNK:
            self._chunk(bytes(self.kept[:CHUNK]), last=False)
            del self.kept[:CHUNK]
        return len(data)

    def finish(self) -> None:
        """Write the last chunk, which says that it is the last."""
        self._chunk(bytes(self.kept), last=True)
        self.kept.clear()

    def _chunk(self, plain: bytes, *, last: bool) -> None:
        self.file.write(self.cipher.encrypt(_nonce(self.number, last), plain, self.head))
        self.number += 1


class Unsealing(io.RawIOBase):
    """Read-only: the plain text of a file that `Sealing` wrote; PrivacyError at the first chunk that is not authentic."""

    def __init__(self, file: BinaryIO, secret: bytes, name: object) -> None:
        self.file, self.name = file, name
        self.head = file.read(len(MAGIC) + SALT)
        if len(self.head) != len(MAGIC) + SALT or not self.head.startswith(MAGIC):
            raise PrivacyError(f"{name}: was not encrypted by meddiff, or its beginning is damaged.")
        self.cipher = _cipher(secret, self.head)
        self.number, self.last, self.ready = 0, False, memoryview(b"")
        self.ahead = file.read(CHUNK + TAG)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        """As in io.RawIOBase; 0 at the authenticated end."""
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self.ready and not self.last:
            self._next()
        n = min(len(target), len(self.ready))
        target[:n] = self.ready[:n]
        self.ready = self.ready[n:]
        return n

    def _next(self) -> None:
        from cryptography.exceptions import InvalidTag

        sealed, self.ahead = self.ahead, self.file.read(CHUNK + TAG)
        self.last = not self.ahead
        try:
            self.ready = memoryview(self.cipher.decrypt(_nonce(self.number, self.last), sealed, self.head))
        except (InvalidTag, ValueError) as error:  # ValueError: shorter than a tag
            raise PrivacyError(f"{self.name}: chunk {self.number} is not authentic: {FACTS}.") from error
        self.number += 1


class Archive:
    """Files of one folder, added one by one in order; their content is never on the disk in the plain."""

    def __init__(self, sealed: Sealing) -> None:
        self.tar = tarfile.open(fileobj=sealed, mode="w|", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - closed by `archive`

    def add(self, name: str, content: bytes) -> None:
        """A file from memory."""
        self.add_stream(name, io.BytesIO(content), len(content))

    def add_stream(self, name: str, content: BinaryIO, size: int) -> None:
        """A file from a stream of known size."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o600
        self.tar.addfile(info, content)


@contextmanager
def archive(path: Path, secret: bytes) -> Iterator[Archive]:
    """An encrypted archive that has its name when it is whole; PrivacyError where the name is taken."""
    if path.exists():
        raise PrivacyError(f"{path}: exists already. Choose another name with -o.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            sealed = Sealing(file, secret)
            one = Archive(sealed)
            try:
                yield one
            finally:
                one.tar.close()
            sealed.finish()
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def encrypt_folder(folder: Path, path: Path, secret: bytes) -> int:
    """Every file of a folder, at any depth, as one encrypted file, read back and compared; the number of files.

    PrivacyError for a folder with links or other things than files, and for an output inside it.
    """
    files = _files(folder)
    if path.resolve().is_relative_to(folder.resolve()):
        raise PrivacyError(f"{path}: lies inside of what is encrypted. Choose a place outside of {folder} with -o.")
    digests = {}
    with archive(path, secret) as out:
        for name in files:
            with (folder / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
                file.seek(0)
                out.add_stream(name, file, size)
    found = {name: hashlib.sha256(content.read()).hexdigest() for name, content in _members(path, secret)}
    if found != digests:
        path.unlink()
        raise PrivacyError(
            f"{folder}: its files changed while they were encrypted. Wait until nothing writes there; try again."
        )
    return len(files)


def decrypt_folder(path: Path, folder: Path, secret: bytes) -> int:
    """The folder that was encrypted, readable by its owner only, there when all of it was authentic; the number of files."""
    if folder.exists():
        raise PrivacyError(f"{folder}: exists already. Choose a new folder with -o.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(mode=0o700)
    count = 0
    try:
        for name, content in _members(path, secret):
            target = partial / name
            if not target.resolve().is_relative_to(partial.resolve()):
                raise PrivacyError(
                    f"{path}: names a file outside of its folder ({name}). It was not made by `meddiff encrypt`."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                shutil.copyfileobj(content, file)
            count += 1
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def _files(folder: Path) -> list[str]:
    """POSIX names of all files, sorted."""
    if not folder.is_dir():
        raise PrivacyError(f"{folder}: is no folder. Give a run, a release, or another folder.")
    names = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            names.append(path.relative_to(folder).as_posix())
        elif not stat.S_ISDIR(mode):
            raise PrivacyError(
                f"{path}: is a link or no plain file, which cannot be encrypted as part of a folder. Remove it."
            )
    if not names:
        raise PrivacyError(f"{folder}: holds no file.")
    return names


def _members(path: Path, secret: bytes) -> Iterator[tuple[str, BinaryIO]]:
    """Name and content of each file in an archive, in order; at the end it is certain that none is missing."""
    try:
        with path.open("rb") as file:
            plain = Unsealing(file, secret, path)
            with tarfile.open(fileobj=io.BufferedReader(plain, CHUNK), mode="r|") as tar:
                for info in tar:
                    content = tar.extractfile(info) if info.isreg() else None
                    if content is None:
                        raise PrivacyError(f"{path}: holds something else than files ({info.name}).")
                    yield info.name, content  # type: ignore[misc]
            while plain.read(CHUNK):  # the padding of the archive, up to the chunk that says it is the last
                pass
    except (OSError, tarfile.TarError) as error:
        raise PrivacyError(f"{path}: cannot be read ({error}).") from error

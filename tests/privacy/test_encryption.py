import os
import stat

import pytest

pytest.importorskip("cryptography")

from meddiff.errors import PrivacyError
from meddiff.privacy import encryption
from meddiff.privacy.encryption import CHUNK, MAGIC, SALT, TAG, archive, decrypt_folder, encrypt_folder, load_secret

CANARY = b"CANARY^PATIENT 1970"
HEAD, SEALED = len(MAGIC) + SALT, CHUNK + TAG


@pytest.fixture
def sealed(tmp_path):
    """(encrypted file, secret) of a folder of several chunks."""
    run = tmp_path / "run"
    (run / "logs").mkdir(parents=True)
    (run / "weights").write_bytes(os.urandom(2 * CHUNK + 17))
    (run / "logs" / "log.jsonl").write_bytes(CANARY * 10)
    (run / "empty").write_bytes(b"")
    secret = load_secret(tmp_path / "key", make=True)
    assert encrypt_folder(run, tmp_path / "run.enc", secret) == 3
    return tmp_path / "run.enc", secret


def test_a_folder_comes_back_and_nothing_plain_was_left(sealed, tmp_path):
    path, secret = sealed
    assert CANARY not in path.read_bytes()
    assert b"logs" not in path.read_bytes()
    assert decrypt_folder(path, tmp_path / "back", secret) == 3
    for name in ("weights", "logs/log.jsonl", "empty"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert stat.S_IMODE((tmp_path / "back").stat().st_mode) == 0o700
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "key", "run", "run.enc"]


def test_two_files_of_one_folder_share_nothing(sealed, tmp_path):
    path, secret = sealed
    encrypt_folder(tmp_path / "run", tmp_path / "again.enc", secret)
    one, two = path.read_bytes(), (tmp_path / "again.enc").read_bytes()
    assert len(one) == len(two)
    assert one[HEAD : HEAD + 64] != two[HEAD : HEAD + 64]


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:HEAD] + bytes([raw[HEAD] ^ 1]) + raw[HEAD + 1 :],  # first byte of the text
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 128]),  # last byte of a tag
        lambda raw: raw[: len(MAGIC)] + bytes([raw[len(MAGIC)] ^ 1]) + raw[len(MAGIC) + 1 :],  # the salt
        lambda raw: raw[:-1],
        lambda raw: raw[: HEAD + SEALED],  # a whole chunk, the end gone
        lambda raw: raw[: HEAD + 2 * SEALED],
        lambda raw: raw[:HEAD],
        lambda raw: raw + b"\0",
        lambda raw: (
            raw[:HEAD] + raw[HEAD + SEALED : HEAD + 2 * SEALED] + raw[HEAD : HEAD + SEALED] + raw[HEAD + 2 * SEALED :]
        ),
        lambda raw: raw[:HEAD] + raw[HEAD + SEALED :],  # the first chunk left out
        lambda raw: raw[: HEAD + SEALED] + raw[HEAD:],  # and twice
    ],
    ids=[
        "byte",
        "tag",
        "salt",
        "shorter",
        "one chunk",
        "two chunks",
        "head",
        "longer",
        "reordered",
        "left out",
        "twice",
    ],
)
def test_a_changed_file_is_refused_and_leaves_no_folder(sealed, tmp_path, damage):
    path, secret = sealed
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PrivacyError, match="is not authentic: the file was changed or cut, or this is not its key"):
        decrypt_folder(path, tmp_path / "back", secret)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key", "run", "run.enc"]


def test_another_key_and_another_kind_of_file_are_refused(sealed, tmp_path):
    path, _ = sealed
    with pytest.raises(PrivacyError, match="chunk 0 is not authentic"):
        decrypt_folder(path, tmp_path / "back", load_secret(tmp_path / "other", make=True))
    with pytest.raises(PrivacyError, match="was not encrypted by meddiff"):
        decrypt_folder(tmp_path / "key", tmp_path / "back", bytes(32))


def test_a_key_that_others_can_read_is_refused(tmp_path):
    key = tmp_path / "keys" / "k"
    with pytest.raises(PrivacyError, match="cannot be read or made"):
        load_secret(key)
    secret = load_secret(key, make=True)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert load_secret(key) == secret
    assert len(secret) == 32
    key.chmod(0o640)
    with pytest.raises(PrivacyError, match=r"others can read this key \(mode 640\)"):
        load_secret(key)
    key.chmod(0o600)
    key.write_text("short")
    with pytest.raises(PrivacyError, match="is no encryption key"):
        load_secret(key)


def test_an_interrupted_archive_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), archive(tmp_path / "a.enc", bytes(32)) as out:  # noqa: PT012
        out.add("a", CANARY * CHUNK)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_places_and_folders_that_cannot_be_encrypted_are_refused(sealed, tmp_path):
    path, secret = sealed
    with pytest.raises(PrivacyError, match="exists already"):
        encrypt_folder(tmp_path / "run", path, secret)
    with pytest.raises(PrivacyError, match="lies inside"):
        encrypt_folder(tmp_path / "run", tmp_path / "run" / "x.enc", secret)
    with pytest.raises(PrivacyError, match="is no folder"):
        encrypt_folder(tmp_path / "nowhere", tmp_path / "x.enc", secret)
    (tmp_path / "run" / "link").symlink_to(tmp_path / "key")
    with pytest.raises(PrivacyError, match="is a link"):
        encrypt_folder(tmp_path / "run", tmp_path / "x.enc", secret)


def test_an_archive_cannot_write_outside_of_its_folder(tmp_path):
    secret = bytes(32)
    with archive(tmp_path / "a.enc", secret) as out:
        out.add("../escaped", CANARY)
    with pytest.raises(PrivacyError, match="names a file outside"):
        decrypt_folder(tmp_path / "a.enc", tmp_path / "back", secret)
    assert [p.name for p in tmp_path.iterdir()] == ["a.enc"]


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(PrivacyError, match=r"pip install 'meddiff\[encrypt\]'"):
        encryption._cipher(bytes(32), MAGIC + bytes(SALT))

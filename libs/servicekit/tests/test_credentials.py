from pathlib import Path

import pytest

from servicekit.credentials import CertificateError, CertificateFiles
from servicekit.identity import TlsFiles
from testkit.pki import ThrowawayCa


def _copy(old: TlsFiles, new: TlsFiles) -> None:
    for name in ("certificate", "private_key", "ca"):
        getattr(old, name).write_bytes(getattr(new, name).read_bytes())


def test_a_replacement_is_noticed_once(tmp_path: Path) -> None:
    """Unchanged files are not read again; changed ones are taken, once."""
    ca = ThrowawayCa(tmp_path)
    files = ca.issue("router")
    held = CertificateFiles(files)
    assert held.refresh() is None
    _copy(files, ca.issue("router"))
    assert held.refresh() == held.material
    assert held.refresh() is None
    assert (held.reloads, held.reload_failures) == (1, 0)


@pytest.mark.parametrize("damage", ["foreign key", "rubbish", "missing", "empty"])
def test_an_unusable_replacement_is_not_taken_until_it_is_whole(tmp_path: Path, damage: str) -> None:
    """What serves goes on serving, failures are counted, and the whole replacement is taken when it is there."""
    ca = ThrowawayCa(tmp_path)
    files, new = ca.issue("router"), ca.issue("router")
    held = CertificateFiles(files)
    before = held.material
    if damage == "foreign key":
        files.private_key.write_bytes(new.private_key.read_bytes())
    elif damage == "missing":
        files.certificate.unlink()
    else:
        files.certificate.write_bytes(b"" if damage == "empty" else b"rubbish")
    assert held.refresh() is None
    assert held.material is before
    assert held.reload_failures == 1
    _copy(files, new)
    assert held.refresh() is not None
    assert held.material.certificate == new.certificate.read_bytes()


def test_files_that_cannot_be_used_do_not_start(tmp_path: Path) -> None:
    """The error names files, and quotes none of them."""
    ca = ThrowawayCa(tmp_path)
    files, other = ca.issue("router"), ca.issue("router")
    mixed = TlsFiles(certificate=files.certificate, private_key=other.private_key, ca=files.ca)
    with pytest.raises(CertificateError, match="is not the key of"):
        CertificateFiles(mixed)
    files.private_key.write_text("canary of a key")
    with pytest.raises(CertificateError) as refused:
        CertificateFiles(files)
    assert "canary" not in str(refused.value)
    with pytest.raises(CertificateError, match="cannot be read"):
        CertificateFiles(TlsFiles(certificate=tmp_path / "no", private_key=files.private_key, ca=files.ca))


def test_the_key_is_not_printed(tmp_path: Path) -> None:
    """The material shows when it ends, and nothing else."""
    material = CertificateFiles(ThrowawayCa(tmp_path).issue("router")).material
    assert "PRIVATE" not in repr(material)
    assert str(material.expires.year) in repr(material)

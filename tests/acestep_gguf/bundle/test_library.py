from pathlib import Path

import pytest

from acestep_gguf.bundle.library import (
    BUNDLE_VARIABLE,
    MAX_LIBRARY_BYTES,
    Library,
    default_bundle,
    library_file,
)
from acestep_gguf.errors import BundleError, UsageError


@pytest.fixture(autouse=True)
def config_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_there_is_no_default_at_first() -> None:
    assert Library.read() == Library()
    assert default_bundle() is None


def test_what_is_used_is_the_default_and_has_a_name(tiny_bundle: Path, bundle_copy: Path) -> None:
    Library.read().using(str(tiny_bundle)).write()
    Library.read().using(str(bundle_copy), "other").write()
    assert default_bundle() == bundle_copy
    Library.read().using("tiny").write()
    assert default_bundle() == tiny_bundle
    library = Library.read()
    assert library.bundles == {"tiny": str(tiny_bundle), "other": str(bundle_copy)}
    assert library.without("tiny") == Library(bundles={"other": str(bundle_copy)})


def test_the_environment_comes_first(
    tiny_bundle: Path, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Library().using(str(tiny_bundle)).write()
    monkeypatch.setenv(BUNDLE_VARIABLE, str(bundle_copy))
    assert default_bundle() == bundle_copy
    monkeypatch.setenv(BUNDLE_VARIABLE, "tiny")
    assert default_bundle() == tiny_bundle
    monkeypatch.setenv(BUNDLE_VARIABLE, "missing")
    with pytest.raises(UsageError, match=f"{BUNDLE_VARIABLE} is missing, but .* is no bundle"):
        default_bundle()


def test_a_default_that_is_gone_is_told(bundle_copy: Path) -> None:
    Library().using(str(bundle_copy)).write()
    bundle_copy.rename(bundle_copy.with_name("elsewhere"))
    with pytest.raises(UsageError, match=r"the default is copy, but .*copy is no bundle"):
        default_bundle()


def test_a_name_is_not_taken_from_another_bundle(tiny_bundle: Path, bundle_copy: Path) -> None:
    library = Library().using(str(tiny_bundle), "it")
    with pytest.raises(UsageError, match=r"is called it already: choose another name"):
        library.using(str(bundle_copy), "it")
    gone = Library(bundles={"it": str(tiny_bundle / "gone")})
    assert gone.using(str(bundle_copy), "it").bundles == {"it": str(bundle_copy)}


def test_only_a_bundle_is_used(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle"):
        Library().using(str(tmp_path))
    with pytest.raises(UsageError, match="missing is not listed"):
        Library().without("missing")


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b'{"bundles": {"a": 1}}', b"\xff", b"[" * 10**5, b" " * (MAX_LIBRARY_BYTES + 1)]
)
def test_a_damaged_file_is_an_error_that_names_it(damage: bytes) -> None:
    library_file().parent.mkdir(parents=True)
    library_file().write_bytes(damage)
    with pytest.raises(UsageError, match=r"bundles\.json .*: remove it"):
        Library.read()


def test_it_cannot_be_written(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "config").write_text("a file where the folder should be")
    with pytest.raises(UsageError, match="cannot be read"):
        Library.read()
    with pytest.raises(UsageError, match="cannot be written"):
        Library().using(str(tiny_bundle)).write()


def test_a_path_that_is_not_utf8_cannot_be_listed() -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        Library(bundles={"a": "\udcff"}).write()
    assert not library_file().exists()

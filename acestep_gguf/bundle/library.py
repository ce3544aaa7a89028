"""Bundles under names of their own, and the default one, so that nobody has to write a path each time."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import msgspec
import platformdirs

from acestep_gguf.bundle.names import BUNDLE_FILE
from acestep_gguf.bundle.schema import Bundle
from acestep_gguf.errors import UsageError
from acestep_gguf.storage.atomic_file import write_atomically

BUNDLE_VARIABLE: Final = "ACESTEP_GGUF_BUNDLE"
MAX_LIBRARY_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """The file of names: folders of bundles by their names, absolute, and the name of the default one."""

    default: str | None = None
    bundles: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Self:
        """The user's; an empty one if there is none.

        Raises:
            UsageError: it cannot be read, or is damaged.
        """
        path = library_file()
        try:
            with path.open("rb") as file:
                data = file.read(MAX_LIBRARY_BYTES + 1)
            if len(data) > MAX_LIBRARY_BYTES:
                raise UsageError(f"{path} is too large for a list of bundles: remove it.")
            return msgspec.json.decode(data, type=cls)
        except FileNotFoundError:
            return cls()
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UsageError(
                f"{path} is damaged ({error}): remove it, and name your bundles again with `use`."
            ) from error

    def write(self) -> None:
        """Make it the user's.

        Raises:
            UsageError: it cannot be written; the one before is still there.
        """
        path = library_file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, [msgspec.json.format(msgspec.json.encode(self)), b"\n"])
        except UnicodeEncodeError as error:
            raise UsageError("a path that is not UTF-8 cannot be listed: rename the folder.") from error
        except OSError as error:
            raise UsageError(f"{path} cannot be written ({error.strerror}): make room for it.") from error

    def name_of(self, folder: Path) -> str | None:
        """What the bundle in ``folder`` is called, if it is listed."""
        where = os.path.abspath(folder)
        return next((name for name, listed in self.bundles.items() if listed == where), None)

    def using(self, bundle: str, name: str | None = None) -> Self:
        """The same with another default: a listed name, or a folder, which is listed under ``name``.

        Raises:
            UsageError: it is neither, or the name is another bundle's.
            BundleError: the folder is no bundle, or a damaged one.
        """
        if bundle in self.bundles and name is None and not is_bundle(bundle):
            return type(self)(default=bundle, bundles=self.bundles)
        folder = self.find(bundle)
        Bundle.read(folder)
        name = name or folder.name
        other = self.bundles.get(name)
        if other not in (None, str(folder)) and is_bundle(str(other)):
            raise UsageError(f"{other} is called {name} already: choose another name.", settings=["name"])
        return type(self)(default=name, bundles={**self.bundles, name: str(folder)})

    def without(self, name: str) -> Self:
        """The same without one of its names; the bundle itself stays where it is.

        Raises:
            UsageError: there is no such name.
        """
        if name not in self.bundles:
            raise UsageError(f"{name} is not listed: `acestep-gguf list` shows what is.")
        bundles = {listed: folder for listed, folder in self.bundles.items() if listed != name}
        return type(self)(default=None if name == self.default else self.default, bundles=bundles)

    def find(self, bundle: str) -> Path:
        """The folder that ``bundle`` says, absolute: a folder's path, which comes first, or a listed name."""
        if not is_bundle(bundle):
            bundle = self.bundles.get(bundle, bundle)
        return Path(os.path.abspath(bundle))


def is_bundle(path: str) -> bool:
    """Whether there is a folder with bundle.json."""
    return os.path.isfile(os.path.join(path, BUNDLE_FILE))


def is_bundle_or_name(bundle: str) -> bool:
    """Whether it is a bundle's folder or a listed name."""
    return bool(bundle) and (is_bundle(bundle) or bundle in Library.read().bundles)


def default_bundle() -> Path | None:
    """The folder of the bundle to use where none is named: ACESTEP_GGUF_BUNDLE's, or the one last `used`.

    Raises:
        UsageError: there is a default, but no bundle in its place.
    """
    library = Library.read()
    if asked := os.environ.get(BUNDLE_VARIABLE):
        folder, origin = library.find(asked), f"{BUNDLE_VARIABLE} is {asked}"
    elif library.default is not None:
        folder, origin = Path(library.bundles.get(library.default, "")), f"the default is {library.default}"
    else:
        return None
    if not is_bundle(str(folder)):
        raise UsageError(
            f"{origin}, but {folder} is no bundle: name one in the command, or choose another default."
        )
    return folder


def library_file() -> Path:
    """Where the names are kept: on Linux in XDG_CONFIG_HOME or ``~/.config``."""
    return platformdirs.user_config_path("acestep-gguf") / "bundles.json"

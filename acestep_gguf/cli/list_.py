"""``acestep-gguf list``: the bundles that have names."""

import os
import sys

from acestep_gguf.cli.options import AsJson
from acestep_gguf.cli.terminal import json_text, printable


def list_(as_json: AsJson = False) -> None:
    """Show the bundles that `use` named."""
    from acestep_gguf.bundle.library import BUNDLE_VARIABLE, Library, is_bundle

    library = Library.read()
    rows = [
        {"name": name, "folder": folder, "default": name == library.default, "found": is_bundle(folder)}
        for name, folder in sorted(library.bundles.items())
    ]
    if as_json:
        print(json_text(rows))
        return
    width = max((len(name) for name in library.bundles), default=0)
    for row in rows:
        notes = [note for note, is_so in (("default", row["default"]), ("gone", not row["found"])) if is_so]
        print("  ".join([printable(row["name"]).ljust(width), printable(row["folder"]), *notes]))
    if not rows:
        print("no bundle has a name yet: `acestep-gguf use FOLDER` gives one.", file=sys.stderr)
    if asked := os.environ.get(BUNDLE_VARIABLE):
        print(f"{BUNDLE_VARIABLE} comes first: {printable(asked)}", file=sys.stderr)

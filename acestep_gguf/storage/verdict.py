"""What a check found out about this machine, kept so that it runs once."""

import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Final

import msgspec

from acestep_gguf.cpus import cpu_name
from acestep_gguf.storage.atomic_file import write_atomically
from acestep_gguf.storage.cache_folder import cache_folder

YES, NO = b"yes\n", b"no\n"
CONTENTS: Final = {YES: True, NO: False}


class Verdict:
    """Yes or no, for this CPU, this version of ours, and the facts that decide it.

    Args:
        kind: names the folder of such verdicts in the cache, "KIND-checks".
        facts: what JSON can say; with other facts it is another verdict.
    """

    def __init__(self, kind: str, facts: Sequence[object]) -> None:
        name = hashlib.sha256(msgspec.json.encode([cpu_name(), version("acestep-gguf"), *facts])).hexdigest()
        self._file = cache_folder() / f"{kind}-checks" / name

    def known(self) -> bool | None:
        """What was found out before, None if nothing was or it cannot be read."""
        try:
            return CONTENTS.get(self._file.read_bytes())
        except OSError:
            return None

    def found_out(self, check: Callable[[], bool]) -> bool:
        """What is known, or what ``check`` says now, which is kept where the cache can be written."""
        known = self.known()
        if known is not None:
            return known
        found = check()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, [YES if found else NO])
        except OSError:
            pass
        return found

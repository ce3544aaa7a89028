"""What lies in a folder where files are being made, or where a process died that made some."""

from pathlib import Path
from typing import Final

from acestep_gguf.storage.atomic_file import partial_name

LOCK_FILE: Final = ".acestep-gguf.lock"
JOURNAL_SUFFIX: Final = ".journal"


def journal_path(path: Path) -> Path:
    """Where the journal of the file that will be ``path`` lies."""
    return path.with_name(f".{path.name}{JOURNAL_SUFFIX}")


def leftovers(folder: Path) -> list[Path]:
    """What a killed process may have left in ``folder``: partial files, journals and its lock."""
    hidden = [partial_name("*"), f".*{JOURNAL_SUFFIX}", LOCK_FILE]
    return sorted(path for pattern in hidden for path in folder.glob(pattern))

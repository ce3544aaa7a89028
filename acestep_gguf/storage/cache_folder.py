"""Where this software keeps what it can make again."""

from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The platform's folder for it: on Linux ``acestep-gguf`` in XDG_CACHE_HOME, or in ``~/.cache``."""
    return platformdirs.user_cache_path("acestep-gguf")

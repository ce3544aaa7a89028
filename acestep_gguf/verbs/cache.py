"""``acestep-gguf cache``: what is kept of pictures between processes."""

import msgspec

from acestep_gguf.errors import UsageError
from acestep_gguf.storage.disk_cache import DiskCache, default_folder


def cache_info(*, as_json: bool) -> str:
    """Folder, entries, bytes and limit, as a table or a JSON object."""
    cache = DiskCache(default_folder())
    contents = cache.contents()
    if as_json:
        facts = {
            "folder": str(cache.folder),
            "entries": contents.entries,
            "bytes": contents.bytes,
            "limit": contents.limit,
        }
        return msgspec.json.format(msgspec.json.encode(facts), indent=2).decode()
    return "\n".join(
        (
            f"folder    {cache.folder}",
            f"entries   {contents.entries}",
            f"size      {contents.bytes / 1e6:.1f} MB",
            f"limit     {contents.limit / 1e6:.1f} MB",
        )
    )


def clear_cache() -> str:
    """Remove all entries, and say how many there were.

    Raises:
        UsageError: the folder cannot be changed.
    """
    cache = DiskCache(default_folder())
    contents = cache.contents()
    try:
        cache.clear()
    except OSError as error:
        raise UsageError(
            f"{cache.folder} cannot be cleared ({error.strerror}): check its permissions."
        ) from error
    return f"removed {contents.entries} entries, {contents.bytes / 1e6:.1f} MB, from {cache.folder}"

"""Sizes as people write and read them."""

import re
from typing import Final

from acestep_gguf.errors import UsageError

UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY_UNITS: Final = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
SIZE: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(?:([kmgt]?)(i?)b?)", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes in ``text``, such as "12GB", "11.5 GiB" or "800M"; without an i, a thousand is a thousand.

    Raises:
        UsageError: it is no size.
    """
    match = SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise UsageError(f"{text!r} is no size: write it like 12GB, 11.5GiB or 800M.")
    unit = match[2].lower()
    return int(float(match[1]) * (BINARY_UNITS if match[3] else UNITS)[unit])


def show_size(n_bytes: float) -> str:
    """Bytes in decimal units, as disks and cards are sold: "19.9 GB"."""
    for name, unit in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if abs(n_bytes) >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes:.0f} B"

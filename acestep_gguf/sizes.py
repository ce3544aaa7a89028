"""Sizes as people write and read them: ``16GB`` has 16 * 10**9 bytes, ``16GiB`` has 16 * 2**30."""

import re
from typing import Final

from acestep_gguf.errors import UsageError

UNITS: Final = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
SIZE: Final = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]i?b?|b)", re.IGNORECASE | re.ASCII)


def parse_size(text: str, name: str) -> int:
    """Bytes in ``text``, such as "12GB", "11.5 GiB" or "800M", which is 800MB.

    A number needs its unit, since nobody who writes 16 means 16 bytes; only 0 needs none.

    Args:
        text: what was written.
        name: of the setting, for the error.

    Raises:
        UsageError: it is not a size.
    """
    if text.strip() == "0":
        return 0
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{name} is {text!r}: give a size with its unit, such as 16GB, 11.5GiB or 800M.")
    number, unit = match.groups()
    return int(float(number) * UNITS[unit.lower().removesuffix("b")])


def show_size(n_bytes: float) -> str:
    """Bytes in decimal units, as disks and cards are sold: "19.9 GB"."""
    for name, unit in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if abs(n_bytes) >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return f"{n_bytes:.0f} B"

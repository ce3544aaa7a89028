"""GPUs that a process plays, for tests; skipped where they cannot be built."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from scripts.checks.played_card import Card, play_card
from scripts.checks.rpc_library import rpc_library


@contextmanager
def played_card(memory: int) -> Iterator[Card]:
    """A card with ``memory`` bytes."""
    try:
        rpc_library()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no GPU can be played without a compiler and llama-cpp-python's source package: {error}")
    with play_card(memory) as card:
        yield card

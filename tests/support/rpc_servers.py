"""RPC servers on free ports of this machine, and the environment that has ggml's RPC backend."""

import os
from contextlib import AbstractContextManager

from scripts.checks.played_card import Card
from tests.support.cards import played_card


def lent_memory(n_bytes: int) -> AbstractContextManager[Card]:
    """A server that lends so much: the process that plays cards. Without a compiler, the test is skipped."""
    return played_card(n_bytes)


def environment(server: Card) -> dict[str, str]:
    """The environment of a client, which may be the only one that is busy on a core."""
    return {**os.environ, "LLAMA_CPP_LIB_PATH": str(server.library.parent), "OMP_WAIT_POLICY": "passive"}

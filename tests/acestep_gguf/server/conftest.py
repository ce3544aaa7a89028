from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_server import LiveServer, live_server


@pytest.fixture(scope="package")
def server(tiny_bundle: Path) -> Iterator[LiveServer]:
    with live_server(tiny_bundle, "-q", "F32", "-c", "256", "-np", "4", "--no-cache") as live:
        yield live

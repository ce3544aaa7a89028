"""What is told about a program that ran."""

import sys

import pytest

from scripts.bench.process_cost import measured
from scripts.bench.table import Row

PROGRAM = """
import sys, time
print("a", flush=True)
time.sleep(0.3)
block = bytearray(64 * 2**20)
print("b", flush=True)
time.sleep(0.2)
print("told", file=sys.stderr)
"""


def test_bytes_have_their_times_and_memory_its_peak() -> None:
    cost = measured([sys.executable, "-c", PROGRAM])
    assert cost.stdout == b"a\nb\n"
    assert cost.stderr == b"told\n"
    assert len(cost.byte_s) == 4
    assert cost.byte_s[2] - cost.byte_s[1] > 0.25
    assert cost.byte_s[3] < cost.seconds
    assert 64 * 2**20 < cost.anonymous < 200 * 2**20


def test_a_program_that_fails_ends_the_benchmark() -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        measured([sys.executable, "-c", "raise SystemExit('no such thing')"])


@pytest.mark.parametrize(
    ("figure", "at_most", "holds"),
    [(0.3, True, True), (0.31, True, False), (0.3, False, True), (0.29, False, False)],
)
def test_bars(figure: float, at_most: bool, holds: bool) -> None:
    row = Row("what", "1 s", "3 s", figure, 0.3, at_most=at_most)
    assert row.holds == holds
    assert row.cells()[-1] == ("yes" if holds else "**no**")

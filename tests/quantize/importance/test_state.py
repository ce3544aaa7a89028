from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acestep_gguf.errors import ImatrixError
from acestep_gguf.quantize.importance.state import State, state_path


def some_state() -> State:
    state = State("mine", n_done=3)
    state.sums.add("prompt", "blk.0.attn_q.weight", np.ones((2, 4), np.float32))
    state.sums.add("picture", "blk.0.attn_q.weight", np.full((5, 4), 1.1, np.float32))
    return state


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    path = state_path(tmp_path / "imatrix.gguf")
    assert path.name == "imatrix.gguf.sums"
    assert State.read(path, "mine") == State("mine")  # nothing was read yet
    state = some_state()
    state.write(path)
    back = State.read(path, "mine")
    assert (back.identity, back.n_done) == ("mine", 3)
    for kind, sums in state.sums.by_kind.items():
        assert back.sums.by_kind[kind].keys() == sums.keys()
        for name, one in sums.items():
            np.testing.assert_array_equal(back.sums.by_kind[kind][name].squares, one.squares)
            assert back.sums.by_kind[kind][name].n_rows == one.n_rows
    back.sums.add("prompt", "blk.0.attn_q.weight", np.ones((2, 4), np.float32))  # it goes on from there
    assert back.sums.n_rows("prompt") == 4


def test_that_of_another_command_is_refused(tmp_path: Path) -> None:
    some_state().write(tmp_path / "state")
    with pytest.raises(ImatrixError, match=r"another decoder, other data or other settings.*restart=True"):
        State.read(tmp_path / "state", "yours")


def test_one_that_cannot_be_written_says_how_to_carry_on(tmp_path: Path) -> None:
    with pytest.raises(ImatrixError, match="the same command carries on"):
        some_state().write(tmp_path / "none" / "state")


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_damage_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    """A byte changed, or the file cut, anywhere: one error of ours."""
    path = tmp_path / "state"
    some_state().write(path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans(), label="cut"):
        content = content[:position]
    else:
        content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(ImatrixError):
        State.read(path, "mine")

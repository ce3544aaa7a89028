from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.bundle.names import FTYPES
from acestep_gguf.errors import BundleError, UsageError
from acestep_gguf.quantize.conversion_events import Event, Planned, Progress
from acestep_gguf.quantize.gguf_layout import lay_out, u32
from acestep_gguf.quantize.planning import (
    ProgressTally,
    bytes_free,
    check_disk,
    check_ftype,
    identity,
    planned_gguf,
    worker_threads,
)
from acestep_gguf.quantize.recipes import TensorShape, choose_types
from acestep_gguf.storage.atomic_file import partial_name
from acestep_gguf.storage.unfinished import journal_path

TENSORS = [
    TensorShape("token_embd.weight", (512, 288)),
    *(TensorShape(f"blk.0.attn_{kind}.weight", (256, 288)) for kind in "qkv"),
    TensorShape("blk.0.ffn_down.weight", (256, 512)),
    TensorShape("blk.0.ffn_norm.weight", (288,)),
    TensorShape("output.weight", (512, 288)),
]
CHOICES = choose_types("Q4_K_M", TENSORS)
LAYOUT = lay_out({}, TENSORS, CHOICES)


def plan(tmp_path: Path, free: int) -> Planned:
    file = planned_gguf(tmp_path / "a.gguf", "Q4_K_M", LAYOUT, CHOICES, None)
    return Planned(
        folder=str(tmp_path), files=(file,), bytes_needed=LAYOUT.n_bytes, bytes_free=free, memory=1
    )


def test_types_and_fallbacks_are_counted(tmp_path: Path) -> None:
    file = planned_gguf(tmp_path / "a.gguf", "Q4_K_M", LAYOUT, CHOICES, None)
    assert (file.file, file.label, file.bytes) == ("a.gguf", "Q4_K_M", LAYOUT.n_bytes)
    assert file.types == {"Q5_0": 3, "Q8_0": 2, "Q6_K": 1, "F32": 1}
    # The recipe itself has Q8_0 for an output matrix whose rows do not fit: that is no fallback.
    assert file.fallbacks == {"Q4_K -> Q5_0": 3, "Q6_K -> Q8_0": 1}


def test_quantized_tensors_that_an_imatrix_does_not_know_are_named(tmp_path: Path) -> None:
    known = {tensor.name: object() for tensor in TENSORS if tensor.name != "output.weight"}
    for importance, unweighed in ((None, ()), (known, ("output.weight",))):
        file = planned_gguf(tmp_path / "a.gguf", "Q4_K_M", LAYOUT, CHOICES, importance)
        assert file.unweighed == unweighed
    assert "blk.0.ffn_norm.weight" not in planned_gguf(tmp_path / "a", "x", LAYOUT, CHOICES, {}).unweighed


def test_a_partial_file_counts_only_with_its_journal(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    (tmp_path / partial_name(path.name)).write_bytes(bytes(99))
    assert planned_gguf(path, "x", LAYOUT, CHOICES, None).bytes_kept == 0
    journal_path(path).touch()
    assert planned_gguf(path, "x", LAYOUT, CHOICES, None).bytes_kept == 99


def test_what_does_not_fit_the_disk_is_refused(tmp_path: Path) -> None:
    check_disk(plan(tmp_path, LAYOUT.n_bytes))
    with pytest.raises(BundleError, match=r"free 9 bytes more, or choose another folder"):
        check_disk(plan(tmp_path, LAYOUT.n_bytes - 9))


def test_leftovers_count_as_free(tmp_path: Path) -> None:
    (tmp_path / "partial").write_bytes(b"x" * 50_000_000)
    gained = bytes_free(tmp_path / "new" / "folder", [tmp_path / "partial"]) - bytes_free(tmp_path, [])
    assert gained > 25_000_000  # others write to the same disk meanwhile


@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_absurd_numbers_of_threads_are_refused(threads: int) -> None:
    assert worker_threads(None) >= 1
    assert worker_threads(1024) == 1024
    with pytest.raises(UsageError, match="give 1 to 1024"):
        worker_threads(threads)


def test_other_ftypes_are_refused() -> None:
    for ftype in FTYPES:
        check_ftype(ftype)
    for other in ("TQ1_0", "q4_k_m", ""):
        with pytest.raises(UsageError, match="choose from IQ1_S"):
            check_ftype(other)


def test_whatever_decides_a_files_bytes_changes_its_identity() -> None:
    ones, twos = np.ones(288, np.float32), np.full(288, 2, np.float32)
    q8_0 = lay_out({}, TENSORS, choose_types("Q8_0", TENSORS))
    identities = [
        identity(LAYOUT, None),
        identity(LAYOUT, None, "source"),
        identity(LAYOUT, {"blk.0.attn_q.weight": ones}),
        identity(LAYOUT, {"blk.0.attn_q.weight": twos}),
        identity(LAYOUT, {"blk.0.attn_k.weight": ones}),
        identity(q8_0, None),
        identity(lay_out({"key": u32(1)}, TENSORS, CHOICES), None),
    ]
    assert len(set(identities)) == len(identities)
    assert identity(LAYOUT, None) == identities[0]


def test_progress_adds_up(tmp_path: Path) -> None:
    told: list[Event] = []
    tally = ProgressTally(plan(tmp_path, 1), told.append)
    for n_bytes, n_tensors in ((10, 0), (0, 0), (0, 1), (5, 0)):
        tally.add(n_bytes, n_tensors)
    totals = {"bytes_total": LAYOUT.n_bytes, "tensors_total": len(TENSORS)}
    assert told == [
        Progress(bytes_written=n_bytes, tensors_written=n_tensors, **totals)
        for n_bytes, n_tensors in ((10, 0), (10, 1), (15, 1))
    ]

import json
from pathlib import Path

import pytest

from acestep_gguf.cli.imatrix_progress import watching
from acestep_gguf.quantize.imatrix import read_imatrix
from tests.support.command_line import acestep, check_is_one_line

FEW = ("-n", "3", "-t", "1", "--question", "Who?")


@pytest.mark.slow
def test_pictures_become_an_imatrix(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    done = acestep("imatrix", tiny_bundle, picture, "-o", out, *FEW)
    assert done.stdout.startswith(f"{out} has 14 matrices, balanced: 1 read by F32 with the float32 tower")
    assert len(read_imatrix(out).entries) == 14
    done = acestep("imatrix", tiny_bundle, picture, "-o", out, *FEW, "--weighting", "pictures", "--json")
    made = json.loads(done.stdout)
    assert (made["weighting"], made["n_samples"], made["rows"]["picture"]) == ("pictures", 1, 4)
    assert "1 of 1 were read already" in done.stderr
    done = acestep("imatrix", tiny_bundle, picture, "-o", out, *FEW[:-1], "What?")
    check_is_one_line(done, "another --output, or --restart to begin anew")


@pytest.mark.slow
def test_one_kind_of_data_at_a_time(tiny_bundle: Path, picture: Path, tmp_path: Path) -> None:
    done = acestep("imatrix", tiny_bundle, picture, "-f", picture, "-o", tmp_path / "out.gguf")
    check_is_one_line(done, "give one; --in-file adds others")
    done = acestep("imatrix", tiny_bundle, picture, "-o", tmp_path / "out.gguf", "--weighting", "all")
    check_is_one_line(done, "--weighting is 'all': choose from text, pictures, balanced")


def test_lines_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    with watching() as show:
        for n_done in range(2, 5):
            show(n_done, 4)
    assert capsys.readouterr().err == "2 of 4 were read already\n"

import shutil
from pathlib import Path

import numpy as np
import pytest

from acestep_gguf.llama.binding import Context, Model
from acestep_gguf.llama.eval_callback import Floats, ProductWatch
from acestep_gguf.llama.params import ContextParams
from scripts.bench.imatrix_divergence import Figure, make_uneven
from scripts.demo.questions import calibration_questions, held_out_questions

N_TOKENS = 8


def logits_and_input(decoder: Path) -> tuple[Floats, Floats]:
    """Logits of the last token, and the inputs of a matrix behind a norm."""
    seen: list[Floats] = []
    watch = ProductWatch(
        lambda name, _: name == "blk.1.ffn_up.weight", lambda _, rows: seen.append(rows.copy())
    )
    params = ContextParams(n_ctx=64, n_outputs_max=N_TOKENS)
    with Model(decoder) as model, Context(model, params, watch) as context:
        context.decode_tokens(range(N_TOKENS), 0, n_outputs=N_TOKENS)
        return context.logits(), seen[0]


def test_an_uneven_decoder_computes_the_same(decoder_file: Path, tmp_path: Path) -> None:
    uneven = Path(shutil.copy(decoder_file, tmp_path / "uneven.gguf"))
    make_uneven(uneven)
    (logits, even_input), (same, uneven_input) = logits_and_input(decoder_file), logits_and_input(uneven)
    np.testing.assert_allclose(same, logits, rtol=1e-3, atol=1e-3)

    def spread(rows: Floats) -> float:
        low, high = np.percentile(np.mean(rows**2, axis=0), [5, 95])
        return float(high / low)

    assert spread(uneven_input) > 10 * spread(even_input)


def test_means_are_over_tokens_and_ratios_over_questions() -> None:
    plain = [np.array([0.0, 2.0]), np.array([4.0])]
    figure = Figure.of([one / 2 for one in plain], plain)
    assert (figure.mean, figure.ratio, figure.least, figure.most) == (1.0, 0.5, 0.5, 0.5)
    assert str(figure) == "1000.000 (1980.0) 0.50 [0.50, 0.50]"


@pytest.mark.parametrize("skill", ["counting", "comparison"])
def test_calibration_draws_other_pictures_than_tests(skill: str) -> None:
    drawn = {
        image.tobytes()
        for source in (held_out_questions, calibration_questions)
        for one in source(skill, 3)
        for image in one.images
    }
    assert len(drawn) == 6 * (2 if skill == "comparison" else 1)

from acestep_gguf.answer import Answer, Timings, Usage
from scripts.bench.guessing_ahead import Written


def answer(seconds: float, tokens: tuple[int, ...], right: int = 0, guessed: int = 0) -> Answer:
    usage = Usage(
        prompt_tokens=9,
        image_tokens=0,
        cached_tokens=0,
        completion_tokens=len(tokens),
        drafted_tokens=guessed,
        accepted_tokens=right,
    )
    timings = Timings(
        load_s=0, image_s=0, prefill_s=1, decode_s=seconds, prefill_tokens=9, decode_tokens=len(tokens)
    )
    return Answer(text="", tokens=tokens, finish_reason="stop", usage=usage, timings=timings)


def test_a_row_has_medians_of_each_way_and_says_where_answers_parted() -> None:
    written = Written(
        [
            (answer(2.0, (1, 2)), answer(1.0, (1, 2), 3, 4)),
            (answer(9.0, (1, 2)), answer(2.0, (1, 3), 3, 4)),
            (answer(3.0, (1, 2)), answer(8.0, (1, 2), 5, 6)),
        ]
    )
    assert written.row("code") == "| code | 2 | 3.00 s | 2.00 s | 1.50 | 5 of 6 | 1 of 3 |"

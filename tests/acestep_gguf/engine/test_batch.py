from pathlib import Path

from acestep_gguf import AceStep, AnswerOptions, Question
from acestep_gguf.errors import ImageError


def test_outcomes_are_the_answers_of_single_questions(model: AceStep, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    few = AnswerOptions(max_tokens=5)
    questions = [
        Question("What is this?", [picture], few),
        Question("What is this?", [tmp_path / "bad.png"], few),
        Question("Hello", options=few),
    ]
    outcomes = {outcome.index: outcome for outcome in model.batch(iter(questions))}
    assert sorted(outcomes) == [0, 1, 2]
    assert isinstance(outcomes[1].error, ImageError)
    for index in (0, 2):
        answer = outcomes[index].answer
        assert answer is not None
        assert answer.tokens == model.generate(questions[index]).tokens

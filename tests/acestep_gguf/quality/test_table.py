from acestep_gguf.quality.report import PictureQuestion, QualityReport
from acestep_gguf.quality.table import scientific, tables
from tests.acestep_gguf.quality.reports import candidate, text_report

MOST_COLUMNS = 120


def test_lines_of_pictures_have_a_figure_and_its_interval_and_fit_a_terminal() -> None:
    report = QualityReport(
        bundle="Tiny",
        asked=(PictureQuestion(picture="a.png", question="What?"),),
        candidates=(
            candidate("checkpoint", "a", 3, tower="checkpoint", megabytes=65432.1, divergence=0),
            candidate("Q4_K_M", "b"),
            candidate("Q4_K_M", "b", tower="int8"),
        ),
    )
    answers, embeds = (table.lines().splitlines() for table in tables(report))
    assert answers[0].split()[:3] == ["decoder", "tower", "MB"]
    assert answers[3].split() == [
        "Q4_K_M", "float32", "12.3", "1.2e-2", "3.7e-2", "1.2e-1", "97.5%", "1.235", "0/1", "1.25",
    ]  # fmt: skip
    assert answers[4].split() == [
        "9.9e-3-1.9e-2", "3.0e-2-5.6e-2", "9.9e-2-1.9e-1", "95.1-98.8%", "1.200-1.346",
    ]  # fmt: skip
    assert max(map(len, answers)) <= MOST_COLUMNS
    assert [line.split()[0] for line in embeds] == ["tower", "checkpoint", "float32", "int8"]
    assert embeds[2].split()[1:] == ["0.9999", "0.9900", "0.9950", "0.9500", "0.50"]


def test_a_text_has_one_table() -> None:
    (table,) = tables(text_report())
    _, best, _, other, _ = table.lines().splitlines()
    assert best.split() == ["F32", "4.0", "0", "0", "0", "90.0%", "12.5", "3.2"]
    assert other.split()[:4] == ["Q4_K_M", "1.0", "1.2e-2", "3.7e-2"]


def test_numbers_in_a_short_scientific_notation() -> None:
    assert [scientific(value) for value in (0, 0.00123, 12.5, 1)] == ["0", "1.2e-3", "1.2e1", "1.0e0"]

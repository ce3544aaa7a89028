"""A quality report as one HTML page: pictures and answers side by side, in a file that needs no other.

Answers and file names come from strangers: everything is escaped, and the page forbids itself scripts and
whatever is not in it.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment

from acestep_gguf.quality.measures import n_alike
from acestep_gguf.quality.report import HEADS, Candidate, QualityReport, cells
from acestep_gguf.vision.image import to_rgb
from acestep_gguf.vision.image_file import open_image

MAX_SIDE: Final = 480  # of a picture on the page, in pixels

PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{{ report.bundle }}</title>
<style>
  body { font: 16px/1.4 sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; }
  table { border-collapse: collapse; margin: 1em 0; }
  th, td { border-bottom: 1px solid #ccc; padding: .3em .8em; text-align: right; vertical-align: top; }
  th:first-child, td:first-child, td.text { text-align: left; }
  td.text { white-space: pre-wrap; overflow-wrap: anywhere; }
  section { border-top: 2px solid #888; display: flex; flex-wrap: wrap; gap: 2em; padding: 1em 0; }
  section > div { flex: 1 1 24em; }
  img { max-width: 100%; }
  mark { background: #ffe08a; }
</style>
<h1>{{ report.bundle }}</h1>
<p>Each decoder and each tower was asked the same {{ report.asked | length }} questions; the first row is
what the others are compared with. KL is the divergence of a prediction in nats a token, top-1 the share of
tokens where both would choose the same, same the number of equal answers, alike the tokens before the first
difference, cosine that of image embeds.</p>
<table>
<tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% for shown in pictures %}<section>
<div><img src="{{ shown.image }}" alt=""><p>{{ shown.name }}</p></div>
<div>{% for question in shown.questions %}<h3>{{ question.text }}</h3>
<table>{% for answer in question.answers %}
<tr><td>{{ answer.candidate }}</td><td class="text">{{ answer.alike }}\
{% if answer.other %}<mark>{{ answer.other }}</mark>{% endif %}</td></tr>{% endfor %}
</table>{% endfor %}</div>
</section>
{% endfor %}</html>
"""


@dataclass(frozen=True, slots=True)
class _Answer:
    """An answer, cut where it begins to differ from the best one's."""

    candidate: str
    alike: str
    other: str


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    answers: Sequence[_Answer]


@dataclass(frozen=True, slots=True)
class _Picture:
    name: str
    image: str
    questions: Sequence[_Question]


def html_page(report: QualityReport) -> str:
    """The page.

    Raises:
        ImageError: a picture is not there any more.
    """
    template = Environment(autoescape=True).from_string(PAGE)
    rows = [cells(candidate) for candidate in report.candidates]
    return template.render(report=report, heads=HEADS, rows=rows, pictures=list(_pictures(report)))


def _pictures(report: QualityReport) -> Iterator[_Picture]:
    for name in dict.fromkeys(asked.picture for asked in report.asked):
        questions = [
            _Question(asked.question, [_answer(found, report, index) for found in report.candidates])
            for index, asked in enumerate(report.asked)
            if asked.picture == name
        ]
        yield _Picture(Path(name).name, _data_url(Path(name)), questions)


def _answer(found: Candidate, report: QualityReport, index: int) -> _Answer:
    text = found.answers[index].text
    cut = n_alike(text, report.best.answers[index].text)
    return _Answer(f"{found.decoder}, {found.tower}", text[:cut], text[cut:])


def _data_url(path: Path) -> str:
    """The picture, made small, as a URL that holds it."""
    image = to_rgb(open_image(path))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"

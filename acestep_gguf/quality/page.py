"""A quality report as one HTML page, which needs no other file: figures, a plot, pictures with their answers.

Answers and file names come from strangers: everything is escaped (the plot does it itself), and the page
forbids itself scripts and whatever is not in it.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment

from acestep_gguf.quality.measures import n_alike
from acestep_gguf.quality.plot import divergence_plot, dots_of
from acestep_gguf.quality.report import Candidate, QualityReport, TextReport
from acestep_gguf.quality.table import tables
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
<meta name="color-scheme" content="light dark">
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
  h2 { font-size: 1.2em; }
  mark { background: #ffe08a; color: #000; }
  small { display: block; opacity: .75; white-space: nowrap; }
  .tables { overflow-x: auto; }
  svg { display: block; font-size: 13px; max-width: 45em; overflow: visible; width: 100%; }
  svg text, svg circle { fill: currentColor; }
  svg .grid { stroke: currentColor; stroke-opacity: .2; }
  svg .interval { stroke: currentColor; stroke-width: 1.5; }
</style>
<main>
<h1>{{ report.bundle }}</h1>
<p>{{ asked }} The first row is what the others are compared with. KL is the divergence of a prediction
in nats a token (mean, 90th and 99th percentile), top-1 the share of tokens where both would choose the same,
perplexity that of the first row's tokens; below a figure stand the ends of its 95 % interval.\
{% if pictures %} Same is the number of equal answers, cosine that of image embeds, centred without the mean
token of each picture.{% endif %}</p>
{{ plot | safe }}
<div class="tables" role="region" aria-label="Figures" tabindex="0">
{% for table in tables %}<table>
<tr>{% for head in table.heads %}<th scope="col">{{ head }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ cell.figure }}\
{% if cell.interval %}<small>{{ cell.interval }}</small>{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}</div>
{% for shown in pictures %}<section>
<div><img src="{{ shown.image }}" alt=""><p>{{ shown.name }}</p></div>
<div>{% for question in shown.questions %}<h2>{{ question.text }}</h2>
<table>{% for answer in question.answers %}
<tr><td>{{ answer.candidate }}</td><td class="text">{{ answer.alike }}\
{% if answer.other %}<mark>{{ answer.other }}</mark>{% endif %}</td></tr>{% endfor %}
</table>{% endfor %}</div>
</section>
{% endfor %}</main>
</html>
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


def html_page(report: QualityReport | TextReport) -> str:
    """The page; of a text, without it.

    Raises:
        ImageError: a picture is not there any more.
    """
    template = Environment(autoescape=True).from_string(PAGE)
    if isinstance(report, QualityReport):
        asked = f"Each decoder and each tower was asked the same {len(report.asked)} questions."
        pictures = list(_pictures(report))
    else:
        asked = f"Each decoder read the same {report.n_windows} windows of {report.n_ctx} tokens of a text."
        pictures = []
    plot = divergence_plot(dots_of(report))
    return template.render(report=report, asked=asked, tables=tables(report), plot=plot, pictures=pictures)


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

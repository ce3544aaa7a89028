"""A folder on the page: a queue, a table, a file for spreadsheets."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from acestep_gguf.demo.questions import CHECKPOINT
from tests.support.browser import drop

pytestmark = pytest.mark.slow

PICTURES = CHECKPOINT / "pictures"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures in two folders, one of them broken, and a file that is none."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    for name in ("10.png", "2.png", "more/1.png"):
        shutil.copy(PICTURES / "shapes.png", folder / name)
    shutil.copy(PICTURES / "bars.jpg", folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    (folder / "notes.txt").write_text("hello")
    (folder / ".hidden.png").write_text("hello")
    return folder


def start(page: Page, question: str) -> None:
    page.get_by_role("textbox", name="Question for each picture").fill(question)
    page.get_by_role("button", name="Start").click()


def saved(page: Page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "answers.csv"
    return [*csv.DictReader(io.StringIO(download.value.path().read_text("utf-8-sig"), newline=""))]


def test_each_picture_of_a_dropped_folder_is_asked_and_the_table_saved(page: Page, folder: Path) -> None:
    drop(page, folder)
    expect(page.get_by_role("heading", name="scans")).to_be_visible()
    expect(page.locator("#folder-state")).to_have_text("5 pictures. 1 other file is left out.")
    expect(page.get_by_role("rowheader")).to_have_text(["2.png", "10.png", "bars.jpg", "broken.png", "1.png"])
    start(page, "What shape is at the top?")
    expect(page.locator("#folder-state")).to_have_text("4 of 5 pictures answered, 1 failed.")
    expect(page.get_by_role("row").nth(1)).to_contain_text("square")
    expect(page.get_by_role("row").nth(4)).to_contain_text("damaged")
    rows = saved(page)
    assert [row["id"] for row in rows] == [
        "scans/2.png",
        "scans/10.png",
        "scans/bars.jpg",
        "scans/broken.png",
        "scans/more/1.png",
    ]
    assert [row["text"] for row in rows if row["id"].endswith("g") and "1" in row["id"]] == ["square"] * 2
    assert rows[0]["image_tokens"] == "64"
    assert rows[0]["finish_reason"] == "stop"
    assert "damaged" in rows[3]["error"]


def test_members_of_a_schema_are_columns(page: Page, folder: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"shape": {"enum": ["square", "circle"]}, "text": {"enum": ["yes", "no"]}},
        "required": ["shape", "text"],
    }
    page.get_by_role("button", name="Options").click()
    page.get_by_role("textbox", name="JSON Schema").fill(json.dumps(schema))
    page.get_by_role("button", name="Done").click()
    drop(page, folder)
    start(page, "What shape is at the top?")
    expect(page.locator("#folder-state")).to_have_text("4 of 5 pictures answered, 1 failed.")
    expect(page.get_by_role("columnheader")).to_have_text(["Picture", "shape", "text", "Tokens", "Seconds"])
    rows = saved(page)
    assert rows[0]["shape"] == "square"
    assert rows[0]["answer_text"] in ("yes", "no")
    assert json.loads(rows[0]["text"])["shape"] == "square"


def test_a_queue_is_stopped_and_goes_on_where_it_was(page: Page, folder: Path) -> None:
    drop(page, folder)
    page.get_by_label("Model").select_option("endless")
    start(page, "Who?")
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_focused()
    expect(page.locator("tr.failed")).to_have_count(1)  # the broken one
    expect(page.locator("tr.writing")).to_have_count(4)
    stop.click()
    expect(page.locator("tr.writing")).to_have_count(0)
    expect(page.get_by_role("button", name="Start")).to_be_focused()
    expect(page.locator("#folder-state")).to_have_text("0 of 5 pictures answered, 1 failed.")
    page.get_by_label("Model").select_option("demo")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#folder-state")).to_have_text("4 of 5 pictures answered, 1 failed.")

    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("button", name="Start").click()  # what failed is asked again, and nothing else
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    expect(page.locator("#folder-state")).to_have_text("4 of 5 pictures answered, 1 failed.")
    assert len([url for url in asked if "completions" in url]) == 1


def test_a_server_whose_queue_is_full_is_asked_again_when_it_says(page: Page, folder: Path) -> None:
    refused: list[str] = []

    def refuse_once(route: Route) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(route.request.url)
            error = {"error": {"message": "full"}}
            route.fulfill(status=429, headers={"Retry-After": "1"}, body=json.dumps(error))

    page.route("**/v1/chat/completions", refuse_once)
    drop(page, folder)
    start(page, "What shape is at the top?")
    expect(page.locator("#folder-state")).to_have_text("4 of 5 pictures answered, 1 failed.")
    assert refused


def test_a_spreadsheet_computes_nothing_that_was_written_into_a_picture(page: Page) -> None:
    cells = ["=1+1", "+cmd", "-cmd", "@x", "\tx", "-5.5", 'a "b", c', "line\nline", "\x00", "plain"]
    text = page.evaluate(
        "async (cells) => (await import('./csv.js')).csv([{ 'a,b': 1.5, ...cells }, { 'a,b': null }]).text()",
        cells,
    )
    head, first, second = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    values = dict(zip(head, first, strict=True))
    assert values.pop("a,b") == "1.5"
    written = [values[str(i)] for i in range(len(cells))]
    assert written == ["'=1+1", "'+cmd", "'-cmd", "'@x", "'\tx", *cells[5:8], "\ufffd", "plain"]
    assert second == [""] * len(head)

"""Asking on the page: pictures in, answers streamed, stopped, asked for again, kept and exported."""

import json
import re
from pathlib import Path

import pillow_heif
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from acestep_gguf.demo.questions import CHECKPOINT
from tests.acestep_gguf.server.page.conftest import OpenPage
from tests.support.browser import ask, body, drop, expect_answers, paste

pytestmark = pytest.mark.slow

SHAPES, BARS, NUMBER = (CHECKPOINT / "pictures" / name for name in ("shapes.png", "bars.jpg", "number.webp"))
SHAPE = "What shape is at the top?"
FOCUSED = "(({ ariaLabel, textContent }) => ariaLabel ?? textContent.trim())(document.activeElement)"
KEPT = "async () => (await (await import('./history.js')).all())[0]?.messages[1].text ?? ''"
SCHEMA = {
    "type": "object",
    "properties": {"shape": {"enum": ["square", "circle", "star"], "title": "which_shape"}},
    "required": ["shape"],
}


def attached(page: Page) -> list[str]:
    names = page.get_by_role("list", name="Pictures of the question").get_by_role("button", name="Look at")
    return [str(name.get_attribute("title")) for name in names.all()]


def test_pictures_are_dropped_pasted_chosen_and_removed(page: Page) -> None:
    drop(page, SHAPES, BARS)
    expect(page.get_by_role("textbox", name="Question", exact=True)).to_be_focused()
    paste(page, SHAPES)
    expect(page.get_by_role("button", name="Remove shapes.png")).to_have_count(2)
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name="Add pictures").click()
    chosen.value.set_files(NUMBER)
    expect(page.get_by_role("button", name="Remove number.webp")).to_be_visible()
    assert attached(page) == ["shapes.png", "bars.jpg", "shapes.png", "number.webp"]
    page.get_by_role("button", name="Remove bars.jpg").click()
    assert attached(page) == ["shapes.png", "shapes.png", "number.webp"]
    expect(page.get_by_role("button", name="Remove shapes.png").nth(1)).to_be_focused()


SLOW_DROP = """() => {
    const asked = new Promise((go) => { window.go = go; });
    const entryOf = DataTransferItem.prototype.webkitGetAsEntry;
    DataTransferItem.prototype.webkitGetAsEntry = function () {
        const entry = entryOf.call(this);
        const file = (...callbacks) => asked.then(() => entry.file(...callbacks));
        return { isFile: true, isDirectory: false, fullPath: entry.fullPath, file };
    };
}"""


def test_a_question_waits_for_pictures_that_were_dropped_before_it(page: Page) -> None:
    page.evaluate(SLOW_DROP)
    drop(page, SHAPES)
    ask(page, SHAPE)
    with page.expect_request("**/v1/chat/completions") as asked:
        assert not attached(page)
        page.evaluate("go()")
    assert [part["type"] for part in body(asked.value)["messages"][0]["content"]] == ["image_url", "text"]
    expect_answers(page, ["square"])


def test_what_is_no_picture_is_named_and_left_out(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    drop(page, tmp_path / "notes.txt", SHAPES)
    expect(page.get_by_role("alert")).to_have_text("No picture that this server reads: notes.txt")
    assert attached(page) == ["shapes.png"]


@pytest.mark.parametrize("suffix", ["tiff", "heic"])
def test_pictures_that_browsers_cannot_show_are_asked_about_all_the_same(
    page: Page, tmp_path: Path, suffix: str
) -> None:
    pillow_heif.register_heif_opener()
    picture = tmp_path / f"shapes.{suffix}"
    Image.open(SHAPES).convert("RGB").save(picture)
    drop(page, picture)
    thumbnail = page.get_by_role("button", name=f"Look at {picture.name}")
    expect(thumbnail.locator("img")).to_be_hidden()
    thumbnail.click()
    expect(page.get_by_role("dialog")).to_contain_text("112 × 112 pixels, 64 tokens")
    page.keyboard.press("Escape")
    ask(page, SHAPE)
    expect_answers(page, ["square"])


def test_an_answer_and_what_it_cost(page: Page) -> None:
    drop(page, SHAPES)
    ask(page, SHAPE)
    expect_answers(page, ["square"])
    expect(page.locator("#announcer")).to_contain_text("square")
    page.locator(".cost summary").click()
    expect(page.locator(".cost")).to_contain_text("64 tokens")
    expect(page.get_by_role("rowheader", name="Writing")).to_be_visible()

    ask(page, "What colour is the star?")  # the picture is known from before
    expect_answers(page, ["square", "orange"])
    expect(page.locator(".cost summary").nth(1)).to_contain_text(re.compile(r"\d+ of \d+ from the cache"))


def test_two_pictures_go_with_a_question_as_they_are(page: Page) -> None:
    drop(page, SHAPES, BARS)
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "Describe this image in detail.")
    *pictures, text = body(asked.value)["messages"][0]["content"]
    assert [part["type"] for part in pictures] == ["image_url", "image_url"]
    assert pictures[1]["image_url"]["url"].startswith("data:image/jpeg;base64,/9j/")
    assert text == {"type": "text", "text": "Describe this image in detail."}
    page.get_by_role("article", name="Answer").locator(".cost summary").click()
    expect(page.locator(".cost")).to_contain_text("128 tokens")


def test_an_answer_is_shown_as_it_is_written_and_can_be_stopped(page: Page) -> None:
    page.get_by_label("Model").select_option("endless")
    ask(page, "Who?")
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_focused()
    text = page.get_by_role("article", name="Answer").locator(".text")
    expect(text).not_to_have_text(re.compile(r"^(Reading)?$"))
    first = text.inner_text()
    expect(text).not_to_have_text(first, use_inner_text=True)  # it grows
    stop.click()
    answer = page.get_by_role("article", name="Answer")
    expect(answer).to_contain_text("Stopped.")
    expect(page.get_by_role("textbox", name="Question", exact=True)).to_be_focused()
    assert len(answer.locator(".text").inner_text()) > len(first)

    ask(page, "And?")  # the stopped answer is a turn of the conversation
    page.keyboard.press("Escape")
    expect(answer.nth(1)).to_contain_text("Stopped.")


def test_a_question_is_asked_again_and_edited(page: Page) -> None:
    drop(page, SHAPES)
    ask(page, SHAPE)
    expect_answers(page, ["square"])
    with page.expect_request("**/v1/chat/completions") as asked:
        page.get_by_role("button", name="Ask again").press("Enter")
    assert len(body(asked.value)["messages"]) == 1
    expect_answers(page, ["square"])

    page.get_by_role("button", name="Edit the question").click()
    editor = page.get_by_role("article", name="Question").get_by_role("textbox")
    expect(editor).to_be_focused()
    editor.fill("What colour is the star?")
    page.get_by_role("article", name="Question").get_by_role("button", name="Ask").click()
    expect_answers(page, ["orange"])

    page.get_by_role("button", name="Edit the question").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Edit the question")).to_be_focused()
    expect_answers(page, ["orange"])


def test_what_has_the_focus_keeps_it_while_an_answer_is_written(page: Page) -> None:
    page.get_by_label("Model").select_option("endless")
    ask(page, "Who?")
    entry = page.locator(".entry")
    entry.focus()
    kept = len(page.evaluate(KEPT))
    while len(page.evaluate(KEPT)) == kept:  # the list is made anew when the answer is kept
        page.wait_for_timeout(100)
    expect(entry).to_be_focused()
    edit = page.get_by_role("button", name="Edit the question")
    edit.focus()
    page.keyboard.press("Escape")
    expect(page.get_by_role("article", name="Answer")).to_contain_text("Stopped.")
    expect(edit).to_be_focused()
    page.get_by_role("button", name="Ask again").press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_focused()


def test_conversations_outlive_a_reload_and_can_be_exported_and_deleted(page: Page) -> None:
    drop(page, SHAPES)
    ask(page, SHAPE)
    expect_answers(page, ["square"])
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("article")).to_have_count(0)
    ask(page, "Hello")
    expect(page.get_by_role("button", name="Ask again")).to_be_visible()

    page.reload()
    conversations = page.get_by_role("complementary", name="Conversations")
    expect(conversations.locator(".entry")).to_have_text(["Hello", SHAPE])
    conversations.get_by_role("button", name=SHAPE, exact=True).click()
    expect_answers(page, ["square"])
    expect(page.get_by_role("article", name="Question").get_by_role("button", name="Look at")).to_be_visible()
    ask(page, "What colour is the star?")  # with the picture of the first turn
    expect_answers(page, ["square", "orange"])

    with page.expect_download() as saved:
        page.get_by_role("button", name="Export this conversation").click()
    (conversation,) = json.loads(saved.value.path().read_text())["conversations"]
    question, answer, *_ = conversation["messages"]
    assert question["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert (question["content"][1]["text"], answer["content"]) == (SHAPE, "square")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export all").click()
    assert len(json.loads(saved.value.path().read_text())["conversations"]) == 2

    page.on("dialog", lambda dialog: dialog.accept())
    conversations.get_by_role("button", name=f"Delete {SHAPE}").click()
    expect(conversations.locator(".entry")).to_have_text(["Hello"])
    expect(page.get_by_role("article")).to_have_count(0)


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(page: Page) -> None:
    page.get_by_label("Model").select_option("endless")
    ask(page, "Who?")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete Who?").click()
    expect(page.locator(".entry")).to_have_count(0)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_label("Model")).to_be_enabled()
    expect(page.locator(".entry")).to_have_count(0)


def test_an_answer_that_a_reload_cut_is_kept_as_far_as_it_went(page: Page) -> None:
    page.get_by_label("Model").select_option("endless")
    ask(page, "Who?")
    while len(page.evaluate(KEPT)) < 100:
        page.wait_for_timeout(100)
    page.reload()
    page.locator(".entry").click()
    answer = page.get_by_role("article", name="Answer")
    expect(answer).to_contain_text("Stopped.")
    expect(answer.locator(".text")).to_have_text(re.compile(r".{50}", re.DOTALL))


def test_what_the_server_refuses_is_said_in_its_words_and_the_conversation_goes_on(
    page: Page, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(SHAPES.read_bytes()[:2000])
    drop(page, tmp_path / "broken.png")
    ask(page, SHAPE)
    expect(page.get_by_role("article", name="Answer").locator(".wrong")).to_contain_text("damaged")
    drop(page, SHAPES)
    ask(page, SHAPE)  # without the question that was refused
    expect(page.get_by_role("article", name="Answer").nth(1).locator(".text")).to_have_text("square")


def test_the_picture_as_the_model_sees_it(page: Page) -> None:
    drop(page, BARS)
    page.get_by_role("button", name="Look at bars.jpg").click()
    dialog = page.get_by_role("dialog", name="bars.jpg")
    expect(dialog).to_contain_text("112 × 112 pixels, 64 tokens")
    seen = dialog.get_by_role("img", name="The picture as the model sees it")
    expect(seen).to_have_js_property("naturalWidth", 112)
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Look at bars.jpg")).to_be_focused()


def test_an_answer_to_a_schema_is_a_form_that_can_be_corrected(page: Page) -> None:
    page.get_by_role("button", name="Options").click()
    dialog = page.get_by_role("dialog", name="Options")
    schema = dialog.get_by_role("textbox", name="JSON Schema")
    schema.fill("{")
    dialog.get_by_role("button", name="Done").click()
    expect(dialog.get_by_role("alert")).to_contain_text("This is no JSON")
    expect(schema).to_be_focused()
    schema.fill(json.dumps(SCHEMA))
    dialog.get_by_role("button", name="Done").click()
    expect(page.get_by_role("button", name="Answers as data")).to_be_visible()

    drop(page, SHAPES)
    ask(page, SHAPE)
    field = page.get_by_role("combobox", name="which shape")
    expect(field.locator("option:checked")).to_have_text("square")
    field.select_option("star")
    expect(page.locator(".entry")).to_be_visible()
    page.reload()
    page.locator(".entry").click()
    expect(field.locator("option:checked")).to_have_text("star")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export this conversation").click()
    (conversation,) = json.loads(saved.value.path().read_text())["conversations"]
    assert conversation["messages"][1]["content"] == '{"shape":"star"}'


def test_options_go_with_each_question(page: Page) -> None:
    page.get_by_role("button", name="Options").click()
    dialog = page.get_by_role("dialog", name="Options")
    dialog.get_by_label("System prompt").fill("Answer briefly.")
    dialog.get_by_label("Tokens at most").fill("2")
    dialog.get_by_label("Temperature").fill("0")
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "Describe this image in detail.")
    sent = body(asked.value)
    assert (sent["max_completion_tokens"], sent["temperature"]) == (2, 0)
    assert sent["messages"][0] == {"role": "system", "content": "Answer briefly."}
    expect(page.get_by_role("article", name="Answer")).to_contain_text("The answer was cut")


@pytest.mark.parametrize("host", ["127.0.0.1", "page.test"])
def test_an_answer_is_copied_also_without_a_secure_context(open_page: OpenPage, url: str, host: str) -> None:
    page = open_page(url.replace("127.0.0.1", host), permissions=["clipboard-read", "clipboard-write"])
    assert page.evaluate("isSecureContext") == (host == "127.0.0.1")
    drop(page, SHAPES)
    ask(page, SHAPE)
    expect_answers(page, ["square"])
    page.get_by_role("button", name="Copy the answer").click()
    expect(page.locator("#announcer")).to_contain_text("Copied")
    question = page.get_by_role("textbox", name="Question", exact=True)
    question.focus()
    page.keyboard.press("Control+v")
    expect(question).to_have_value("square")
    expect_answers(page, ["square"])  # and that was asked on a page without a secure context, too


def test_all_of_it_with_the_keyboard_alone(page: Page) -> None:
    question = page.get_by_role("textbox", name="Question", exact=True)
    expect(question).to_be_focused()
    paste(page, SHAPES)
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    expect(question).to_have_value("one\ntwo")
    question.fill(SHAPE)
    page.keyboard.press("Enter")
    expect_answers(page, ["square"])
    expect(question).to_be_focused()
    names = []
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        names.append(page.evaluate(FOCUSED))
    for name in (
        "Copy the answer",
        "Ask again",
        "Edit the question",
        "Look at shapes.png",
        "Options",
        "Folder",
        f"Delete {SHAPE}",
    ):
        assert name in names

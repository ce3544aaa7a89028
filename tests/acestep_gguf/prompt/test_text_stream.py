from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.prompt.text_stream import TextStream


def pieces(stream: TextStream, chunks: list[bytes]) -> list[str]:
    return [*(stream.feed(chunk) for chunk in chunks), stream.finish()]


def test_characters_come_out_whole() -> None:
    assert pieces(TextStream(), [b"a\xc3", b"\xa9\xf0\x9f", b"\x8e", b"\x89!"]) == ["a", "é", "", "🎉!", ""]


def test_half_a_character_at_the_end_is_replaced() -> None:
    assert pieces(TextStream(), [b"a\xf0\x9f"]) == ["a", "\ufffd"]


def test_a_stop_string_over_several_tokens_is_not_shown() -> None:
    stream = TextStream(["END", "###"])
    assert pieces(stream, [b"one E", b"N", b"D two", b"three"]) == ["one ", "", "", "", ""]
    assert stream.stopped
    assert stream.so_far == "one "


def test_what_only_began_like_a_stop_string_is_shown() -> None:
    assert pieces(TextStream(["END"]), [b"E", b"N", b"E", b"x", b"EN"]) == ["", "", "EN", "Ex", "", "EN"]


def test_the_first_of_several_stop_strings_counts() -> None:
    stream = TextStream(["b", "a"])
    assert pieces(stream, [b"xab"]) == ["x", ""]


@given(
    text=st.text(),
    cuts=st.lists(st.integers(0, 100)),
    stop=st.lists(st.text(min_size=1, max_size=3), max_size=3),
)
def test_any_cutting_gives_the_same_text(text: str, cuts: list[int], stop: list[str]) -> None:
    data = text.encode()
    bounds = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    stream = TextStream(stop)
    shown = pieces(stream, [data[a:b] for a, b in pairwise(bounds)])
    places = [place for word in stop if (place := text.find(word)) >= 0]
    if not places:
        assert "".join(shown) == text == stream.so_far
    else:  # which of two overlapping stop strings is seen first depends on the cuts
        assert stream.stopped
        assert text.startswith("".join(shown))
        assert not any(word in stream.so_far for word in stop)


def test_the_space_that_sentencepiece_begins_with_is_left_out() -> None:
    stream = TextStream(["END"], strip_space=True)
    assert pieces(stream, [b"", b" ", b" a", b" b"]) == ["", "", " a", " b", ""]
    assert pieces(TextStream(strip_space=True), [b"a", b" b"]) == ["a", " b", ""]
    assert pieces(TextStream(["END"], strip_space=True), [b" E", b"ND"]) == ["", "", ""]

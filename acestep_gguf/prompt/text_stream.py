"""Bytes of tokens become text that can be shown at once: never half a character or part of a stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Decodes the bytes of an answer piece by piece.

    Args:
        stop: strings that end the answer, none empty; neither they nor what follows is given out.
        strip_space: leave out a space at the beginning, which SentencePiece writes before the first word.
    """

    def __init__(self, stop: Sequence[str] = (), *, strip_space: bool = False) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._stop = tuple(stop)
        self._held = ""
        self._given: list[str] = []
        self._strip_space = strip_space
        self.stopped = False

    @property
    def so_far(self) -> str:
        """All text that was given out."""
        return "".join(self._given)

    def feed(self, data: bytes) -> str:
        """Text that is now certain, with what was held back before it."""
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(data)
        if self._strip_space and text:
            text, self._strip_space = text.removeprefix(" "), False
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._give(text[: min(found)], "")
        certain = len(text) - self._beginning_of_stop(text)
        return self._give(text[:certain], text[certain:])

    def finish(self) -> str:
        """The rest, when no more bytes come; half a character becomes U+FFFD."""
        rest = self._held + self._decoder.decode(b"", final=True)
        return self._give("" if self.stopped else rest, "")

    def _give(self, text: str, held: str) -> str:
        self._given.append(text)
        self._held = held
        return text

    def _beginning_of_stop(self, text: str) -> int:
        """How many characters at the end of ``text`` might begin a stop string."""
        longest = max(map(len, self._stop), default=0)
        for length in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0

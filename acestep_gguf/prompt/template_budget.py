"""What a chat template may spend. Each operation pays, in bytes, for what it reads and for what it makes.

It pays before it runs, so that one sum bounds both memory and time. A clock bounds the time on slow machines.
"""

import re
from collections.abc import Iterable, Iterator, MappingView
from itertools import chain
from sys import getsizeof
from time import monotonic
from typing import Any, Final

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined

MAX_SECONDS: Final = 5.0
MAX_BYTES: Final = 128 * 2**20  # for all operations of one rendering
MAX_BYTES_AT_ONCE: Final = 8 * 2**20  # for one operation
MAX_CALLS: Final = 64  # macros that call each other
MAX_NESTING: Final = 16  # lists in lists
MAX_INTEGER_BITS: Final = 64  # few enough that a dict cannot be filled with integers of the same hash
MAX_EXPONENT: Final = 64
MAX_INDENT: Final = 8
MAX_WORD: Final = 64  # characters of numbers, names of attributes, and other texts that are always short

# Prices in bytes: what an object of Python takes, or a round number for what leaves nothing behind.
STEP: Final = 64
CALL: Final = 256
LOOP: Final = 1024
CHARACTER: Final = 4
ITEM: Final = 8
PIECE: Final = 96  # a number or a short string, and its place in a list
# For each byte of a value that is written as text: "\\x00" becomes six characters of up to four bytes.
WRITTEN: Final = 24
WRITTEN_INDENTED: Final = 48  # MAX_NESTING * MAX_INDENT spaces before a value that takes 16 bytes

_PLAIN: Final = (str, int, float, Undefined, type(None))
_NOT_NESTED: Final = (*_PLAIN, range)
_ITEMS_TO_BE_MADE: Final = (str, range, MappingView)
_VALUES: Final = (*_PLAIN, list, tuple, dict, range, MappingView)
_PLAIN_FIELDS: Final = re.compile(r"\{\w*\}|\{\{|\}\}")


class LimitError(SecurityError):
    """A template has spent what it may; the message says why, as a clause whose subject is the template."""


class Budget:
    """What is left to spend in one rendering.

    The methods below ``made`` are the prices of operations, and take what the operation takes.

    Raises:
        LimitError: too little is left, or one operation asks for too much.
        SecurityError: an operation of which nobody can say what it costs.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin another rendering."""
        self._left = MAX_BYTES
        self._deadline = monotonic() + MAX_SECONDS
        self._n_calls = 0

    def spend(self, n_bytes: int) -> None:
        """Pay for one operation."""
        self._left -= n_bytes + STEP
        if n_bytes > MAX_BYTES_AT_ONCE:
            raise LimitError(f"it makes more than {MAX_BYTES_AT_ONCE >> 20} MiB at once")
        if self._left < 0:
            raise LimitError(f"it makes more than {MAX_BYTES >> 20} MiB")
        if monotonic() > self._deadline:
            raise LimitError(f"it takes more than {MAX_SECONDS:.0f} s")

    def enter_call(self, n_operands: int) -> None:
        """Pay for a call, and count those that it is inside of."""
        self._n_calls += 1
        if self._n_calls > MAX_CALLS:
            raise LimitError("its macros call each other without end")
        self.spend(CALL + PIECE * n_operands)

    def leave_call(self) -> None:
        """End the innermost call."""
        self._n_calls -= 1

    def rounds(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop, each of which is paid for when it is taken."""
        self.spend(LOOP)
        for item in items:
            self.spend(0)
            yield item

    def read(self, value: Any, factor: int = 1, nesting: int = 0) -> None:
        """Pay for looking at the whole of a value; an item that it holds twice is read twice."""
        if nesting > MAX_NESTING:
            raise LimitError("it nests lists too deeply")
        if not isinstance(value, _VALUES):
            raise SecurityError(f"it uses a {type(value).__name__} as a value")
        self.spend(factor * (PIECE * len(value) if isinstance(value, range) else getsizeof(value)))
        if isinstance(value, _NOT_NESTED):
            return
        if isinstance(value, dict):
            value = chain(value.keys(), value.values())
        for item in value:
            self.read(item, factor, nesting + 1)

    def made(self, value: Any) -> Any:
        """Pay for a new value; its items were paid for when they were made."""
        self.spend(getsizeof(value))
        return value

    def free(self, *_: Any, **__: Any) -> None:
        """What looks at nothing and makes nothing."""
        self.spend(0)

    def compared(self, *values: Any, **more: Any) -> None:
        """What looks at its operands."""
        for value in (*values, *more.values()):
            self.read(value)

    def looked_up(self, _: Any, /, *keys: Any) -> None:
        """What looks at its arguments, but not at the value that it is a method of."""
        self.compared(*keys)

    def contained(self, container: Any) -> None:
        """``in``: all of a list is looked at, nothing of a dict."""
        if isinstance(container, dict):
            self.spend(0)
        else:
            self.read(container)

    def ordered(self, values: Any, /, *arguments: Any, **options: Any) -> None:
        """``sort`` and its like, which make copies in lower case."""
        self._check_short(*arguments, *options.values())
        if any("," in option for option in (*arguments, *options.values()) if isinstance(option, str)):
            raise SecurityError("it sorts by several attributes")
        self.read(values, factor=CHARACTER)

    def listed(self, values: Any, /, *_: Any, **__: Any) -> None:
        """What goes through items, some of which exist only then."""
        self.spend(PIECE * len(values) if isinstance(values, _ITEMS_TO_BE_MADE) else 0)

    def numbers(self, *values: Any) -> None:
        """Arithmetic, for which nothing but numbers will do: ``%`` would format a string."""
        if not all(isinstance(value, int | float) for value in values):
            raise SecurityError("it calculates with what is not a number")
        self.spend(0)

    def parsed(self, text: Any, /, *_: Any, **__: Any) -> None:
        """A number that is read from text."""
        self._check_short(text)
        self.spend(0)

    def written(self, value: Any) -> None:
        """A value as text, which a string is already."""
        if isinstance(value, str):
            self.spend(0)
        else:
            self.read(value, factor=WRITTEN)

    def copied(self, text: Any) -> None:
        """A text of up to three times as many characters, which "ΐ" becomes in upper case."""
        self.written(text)
        self.spend(3 * CHARACTER * len(text) if isinstance(text, str) else 0)

    def trimmed(self, text: Any, chars: Any = None) -> None:
        """``strip``, which looks for each character of the text among ``chars``."""
        self._check_short(chars)
        self.written(text)
        self.spend(getsizeof(text))

    def split(self, text: str, sep: str | None = None, maxsplit: int = -1) -> None:
        """``str.split``."""
        n_pieces = 1 + (text.count(sep) if sep else len(text) // 2)
        if maxsplit >= 0:
            n_pieces = min(n_pieces, 1 + maxsplit)
        self.spend(getsizeof(text) + PIECE * n_pieces)

    def joined(self, values: Any, d: Any = "", attribute: Any = None) -> None:
        """The filter ``join``, but not of attributes, whose sizes would be unknown."""
        if attribute is not None:
            raise SecurityError("it joins attributes")
        self._check_plain(d)
        self.listed(values)
        for value in values:
            self.written(value)
            self.spend(CHARACTER * (len(str(d)) + (len(value) if isinstance(value, str) else 0)))

    def joined_by(self, separator: str, values: Any) -> None:
        """``str.join``."""
        self.joined(values, separator)

    def replaced(self, text: Any, old: Any, new: Any, count: Any = None) -> None:
        """``str.replace`` and the filter ``replace``."""
        self._check_plain(text, old, new, count)
        self.read(text)
        text = str(text)
        self.spend(CHARACTER * (len(text) + text.count(str(old)) * len(str(new))))

    def indented(self, text: Any, width: Any = 4, first: Any = False, blank: Any = False) -> None:
        """The filter ``indent``; each character may be a line of its own."""
        self._check_plain(text, first, blank)
        self._check_short(width)
        width = len(width) if isinstance(width, str) else width
        if not isinstance(width, int) or width > MAX_WORD:
            raise SecurityError("it indents too far")
        self.spend(len(str(text)) * (PIECE + CHARACTER * max(0, width)))

    def formatted(self, text: str, /, *values: Any, **more: Any) -> None:
        """``str.format`` with ``{}``, ``{0}`` and ``{name}``, but without attributes and widths."""
        values = (*values, *more.values())
        self._check_plain(*values)
        rest, n_fields = _PLAIN_FIELDS.subn("", text)
        if "{" in rest or "}" in rest:
            raise SecurityError("it uses str.format with other fields than {}, {0} and {name}")
        self.spend(CHARACTER * (len(text) + n_fields * sum(len(str(value)) for value in values)))

    def serialized(
        self,
        value: Any,
        ensure_ascii: Any = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: Any = False,
    ) -> None:
        """The filter ``tojson``."""
        self._check_plain(ensure_ascii, sort_keys)
        if indent is not None and not (isinstance(indent, int) and indent <= MAX_INDENT):
            raise SecurityError(f"it indents JSON by other than up to {MAX_INDENT} spaces")
        if separators is not None:
            self.read(separators)
            self._check_short(*separators)
        self.read(value, factor=WRITTEN if indent is None else WRITTEN_INDENTED)

    def operated(self, operator: str, left: Any, right: Any) -> None:
        """A binary operator."""
        if operator in {"-", "**", "%"}:
            self.numbers(left, right)
            if operator == "**" and abs(right) > MAX_EXPONENT:
                raise SecurityError("it uses too large an exponent")
        if operator == "*" and isinstance(right, str | list | tuple):
            left, right = right, left
        if operator == "*" and isinstance(left, str | list | tuple) and isinstance(right, int):
            self.spend(ITEM * len(left) * max(0, right))
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.spend(CHARACTER * (len(left) + len(right)))
        elif operator == "+" and isinstance(left, list | tuple):
            self.spend(getsizeof(left) + getsizeof(right))
        else:
            self.spend(0)

    def _check_plain(self, *values: Any) -> None:
        if not all(isinstance(value, _PLAIN) for value in values):
            raise SecurityError("it uses a list as a text")

    def _check_short(self, *values: Any) -> None:
        self._check_plain(*values)
        if any(isinstance(value, str) and len(value) > MAX_WORD for value in values):
            raise SecurityError(f"it gives more than {MAX_WORD} characters where a word is enough")


def check_number(value: Any) -> Any:
    """The value, unless it is an integer that is too large.

    Raises:
        SecurityError: it is.
    """
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise SecurityError(f"it uses a number of more than {MAX_INTEGER_BITS} bits")
    return value

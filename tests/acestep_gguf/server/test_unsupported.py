import re
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.server.unsupported import UNSUPPORTED, check_unsupported

PAGE = Path(__file__).parents[3] / "docs/server.md"


def test_the_documentation_has_the_table() -> None:
    rows = re.findall(r"^\| (`.*`) \| (ignored|refused) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    written = {name: (rule, why) for names, rule, why in rows for name in re.findall(r"`(\w+)`", names)}
    assert written == {name: (rule, why) for name, (rule, why) in UNSUPPORTED.items()}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_each_may_be_sent_if_it_asks_for_nothing(name: str) -> None:
    empty: tuple[Any, ...] = (None, False, 0, 0.0, "", [], {}, "none", "auto")
    for nothing in empty:
        check_unsupported({name: nothing})
    if UNSUPPORTED[name].rule == "ignored":
        check_unsupported({name: "anything"})
    else:
        with pytest.raises(ValueError, match=f"{name} is not supported"):
            check_unsupported({name: "anything"})


@pytest.mark.parametrize("name", ["unheard_of", "\n", "x" * 1000])
def test_what_is_in_no_table_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not known here") as refused:
        check_unsupported({name: None})
    assert len(str(refused.value)) < 100

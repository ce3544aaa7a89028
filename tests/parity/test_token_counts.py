"""How many tokens InternVL's pictures have, next to transformers' processor."""

from pathlib import Path

import pytest

from tests.support.token_counts import PUBLISHED, our_counts, random_sizes

pytestmark = pytest.mark.parity


def test_pictures_have_as_many_tokens_as_in_transformers(tmp_path: Path) -> None:
    from tests.parity.reference import internvl_token_counts

    checkpoint, sizes = PUBLISHED.write(tmp_path / "c"), random_sizes(2000)
    assert our_counts(checkpoint, sizes) == internvl_token_counts(checkpoint, sizes)

import pytest

from acestep_gguf.errors import UsageError
from acestep_gguf.sizes import parse_size, show_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("12GB", 12 * 10**9),
        ("11.5 GiB", 11.5 * 2**30),
        ("800M", 8 * 10**8),
        ("16g", 16 * 10**9),
        ("16Gi", 16 * 2**30),
        ("1TB", 10**12),
        (" 7b ", 7),
        ("0", 0),
    ],
)
def test_sizes_are_read(text: str, n_bytes: float) -> None:
    assert parse_size(text, "ram") == n_bytes


@pytest.mark.parametrize(
    "text", ["", "16", "17179869184", "GB", "-1GB", "1e9", "12 XB", "1ib", "9" * 400, "1.GB", "٣GB"]
)
def test_what_is_not_a_size_or_has_no_unit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^ram is .*: give a size with its unit, such as 16GB"):
        parse_size(text, "ram")


def test_sizes_are_shown() -> None:
    assert [show_size(n) for n in (0, 999, 1000, 2_500_000, 19_849_918_944)] == [
        "0 B", "999 B", "1.0 KB", "2.5 MB", "19.8 GB"
    ]  # fmt: skip

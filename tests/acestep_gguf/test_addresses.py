from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_gguf.addresses import Address, is_loopback, rpc_addresses
from acestep_gguf.errors import UsageError
from acestep_gguf.options import EngineOptions


def test_servers_are_written_as_llama_cpp_writes_them() -> None:
    assert rpc_addresses("10.0.0.2:50052") == (Address("10.0.0.2", 50052),)
    assert rpc_addresses("a:1, b:65535") == (Address("a", 1), Address("b", 65535))
    assert EngineOptions(rpc="a:1").rpc_addresses == (Address("a", 1),)
    assert EngineOptions().rpc_addresses == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        ":1",
        "a:",
        "a:0",
        "a:65536",
        "a:1,",
        "a:1,a:1",
        "[::1]:1",
        "::1",
        "a:1x",
        "a:²",
        "a:-1",
        5,
        None,
    ],
)
def test_what_names_no_servers(text: Any) -> None:
    with pytest.raises(UsageError, match="rpc") as raised:
        rpc_addresses(text)
    assert raised.value.settings == ("rpc",)


def test_no_more_servers_than_llama_cpp_takes() -> None:
    assert len(rpc_addresses(",".join(f"a:{port}" for port in range(1, 17)))) == 16
    with pytest.raises(UsageError, match="more than 16"):
        rpc_addresses(",".join(f"a:{port}" for port in range(1, 18)))


@given(st.text())
def test_any_text_is_servers_or_a_sentence(text: str) -> None:
    try:
        addresses = rpc_addresses(text)
    except UsageError:
        return
    assert rpc_addresses(",".join(map(str, addresses))) == addresses


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "10.0.0.1", "example.com")),
    ],
)
def test_which_addresses_only_this_machine_reaches(host: str, is_own: bool) -> None:
    assert is_loopback(host) is is_own

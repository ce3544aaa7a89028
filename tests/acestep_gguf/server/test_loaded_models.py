"""Which bundles are loaded, where memory has room for one only."""

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from acestep_gguf.addresses import Address
from acestep_gguf.bundle.library import Library
from acestep_gguf.engine import workload
from acestep_gguf.errors import MemoryShortageError, UsageError
from acestep_gguf.options import EngineOptions
from acestep_gguf.plan.machine import Machine, this_machine
from acestep_gguf.server.errors import ApiError
from acestep_gguf.server.loaded_models import Models
from acestep_gguf.server.settings import ServerSettings
from tests.support.event_loop import run

OPTIONS = EngineOptions(quant="F32", n_ctx=64, n_threads=1, vision="float32")


def machine_with_room_for_one(rpc: Sequence[Address]) -> Machine:
    n_models = sum(thread.name.startswith("model ") for thread in threading.enumerate())
    return replace(this_machine(rpc), ram=2**32 if n_models <= 1 else 2**20)


@pytest.fixture
def folders(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(workload, "this_machine", machine_with_room_for_one)
    return [Path(shutil.copytree(tiny_bundle, tmp_path / name)) for name in ("first", "second")]


def test_the_least_used_makes_room(folders: list[Path]) -> None:
    async def scenario() -> None:
        models = Models(folders, OPTIONS, ServerSettings())
        await models.load_first()
        assert [*models.threads] == ["first"]
        for name in ("second", "first", "first", "second"):
            async with models.lend(name) as thread:
                assert (await thread.model()).bundle.name.startswith("tiny")
                assert [*models.threads] == [name]
        await models.close()
        assert not models.threads

    run(scenario())


def test_one_that_is_used_is_not_taken_away(folders: list[Path]) -> None:
    async def scenario() -> None:
        models = Models(folders, OPTIONS, ServerSettings())
        async with models.lend("first"):
            with pytest.raises(ApiError, match="memory") as refused:
                async with models.lend("second"):
                    pass
            assert refused.value.status_code == 503
            assert isinstance(refused.value.__cause__, MemoryShortageError)
            assert refused.value.headers is not None
            assert "Retry-After" in refused.value.headers
            assert [*models.threads] == ["first"]
        async with models.lend("second"):
            assert [*models.threads] == ["second"]
        await models.close()

    run(scenario())


def test_a_listed_bundle_has_its_name_there(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    Library.read().using(str(tiny_bundle), "shapes").write()
    assert [*Models([tiny_bundle], OPTIONS, ServerSettings()).bundles] == ["shapes"]


def test_two_bundles_need_two_names(tiny_bundle: Path) -> None:
    with pytest.raises(UsageError, match="two bundles are called tiny"):
        Models([tiny_bundle, tiny_bundle], OPTIONS, ServerSettings())
    with pytest.raises(UsageError, match="no bundle"):
        Models([], OPTIONS, ServerSettings())

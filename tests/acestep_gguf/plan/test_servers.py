"""Plans with servers' memory: what they grant is what was planned, to the byte."""

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from acestep_gguf.options import EngineOptions
from acestep_gguf.plan.bundle_model import BundleModel
from acestep_gguf.plan.machine import Gpu, Machine
from acestep_gguf.plan.planner import Plan, make_plan
from acestep_gguf.plan.report import plan_line, plan_table
from acestep_gguf.plan.settings import Workload
from scripts.checks.played_card import Card
from tests.support.rpc_servers import environment, lent_memory

MIB = 2**20
GIB = 2**30


def acestep(servers: Sequence[Card], *words: object) -> "subprocess.CompletedProcess[str]":
    """A verb with these servers, in a process of its own, on one thread."""
    names = ",".join(server.endpoint for server in servers)
    command = [sys.executable, "-m", "acestep_gguf", *map(str, words), "--rpc", names, "-t", "1"]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment(servers[0]), timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rooms", "options"),
    [
        ([GIB], []),
        ([GIB, GIB], []),
        ([GIB, GIB], ["-ctk", "q8_0", "-ctv", "q8_0", "-ub", "64"]),
        ([GIB, GIB], ["--n-gpu-layers", "4", "--flash-attn", "off"]),
        ([GIB], ["--n-gpu-layers", "2", "--no-kv-offload"]),
        ([126 * MIB], []),  # for some layers, and the attention of another
        ([60 * MIB, 128 * MIB], []),  # for some layers
    ],
)
def test_what_is_granted_is_what_was_planned(
    hollow_folder: Path, picture: Path, rooms: list[int], options: list[str]
) -> None:
    options = ["--ctx-size", "1024", *options]
    with ExitStack() as stack:
        servers = [stack.enter_context(lent_memory(room)) for room in rooms]
        planned = acestep(servers, "plan", hollow_folder, "--json", *options)
        assert planned.returncode == 0, planned.stderr
        asked = ["--image", picture, "-n", "4", "--no-cache", "What is it?"]
        done = acestep(servers, "run", hollow_folder, *options, *asked)
        granted = [server.granted() for server in servers]
        most_held = [server.most_held for server in servers]
        assert [server.refused() for server in servers] == [[]] * len(rooms)
    assert done.returncode == 0, done.stderr
    facts = json.loads(planned.stdout)
    assert facts["settings"]["op_offload"] is False
    for number, room in enumerate(rooms, 1):
        parts = {part["name"]: part for part in facts["parts"] if part["device"] == number}
        assert {part["kind"] for part in parts.values()} == {"remote"}
        sizes = {name: part["n_bytes"] for name, part in parts.items()}
        sizes.pop("scratch of the server")
        compute, kv = sizes.pop("compute buffer"), sizes.pop("KV cache", 0)
        weights = sum(sizes.values())
        assert granted[number - 1] == [n_bytes for n_bytes in (weights, kv, compute) if n_bytes]
        assert most_held[number - 1] <= facts["gpus"][number - 1]["needed"] <= room
    if max(rooms) < GIB:
        assert 0 < facts["settings"]["n_gpu_layers"] < 7


@pytest.mark.slow
def test_a_server_without_room_for_what_was_asked_is_refused_before_anything_is_sent(
    hollow_folder: Path,
) -> None:
    with lent_memory(8 * MIB) as server:
        done = acestep([server], "run", hollow_folder, "--n-gpu-layers", "99", "What is it?")
        assert server.granted() == server.refused() == []
    assert done.returncode == 1
    assert f"more memory of {server.endpoint}; --n-gpu-layers 0 would fit" in done.stderr


@pytest.mark.slow
def test_a_server_that_is_too_small_is_left_alone(hollow_folder: Path) -> None:
    with lent_memory(MIB) as server:
        done = acestep([server], "run", hollow_folder, "-c", "1024", "-n", "2", "What is it?")
        assert server.granted() == server.refused() == []
    assert done.returncode == 0, done.stderr
    assert f"0 layers and 0 B of 1.0 MB on {server.endpoint}" in done.stderr


@pytest.mark.slow
def test_answers_are_those_of_this_machine_alone(hollow_folder: Path, picture: Path) -> None:
    question = ["--image", picture, "-n", "8", "--no-cache", "--quiet", "What is it?"]
    with lent_memory(GIB) as server:
        lent = acestep([server], "run", hollow_folder, *question)
        alone = acestep([server], "run", hollow_folder, "--n-gpu-layers", "0", *question)
        assert len(server.granted()) == 3  # of the first
    assert (lent.returncode, alone.returncode) == (0, 0), lent.stderr + alone.stderr
    assert lent.stdout == alone.stdout != ""


def servers(*memory: int) -> tuple[Gpu, ...]:
    return tuple(Gpu(name=f"server:{n}", memory=size, remote=True) for n, size in enumerate(memory, 1))


def planned(large: BundleModel, machine: Machine, **options: Any) -> Plan:
    chosen = EngineOptions(n_ctx=4096, quant="Q4_K_M", rpc="server:1,server:2", **options)
    return make_plan(large, machine, chosen, Workload(images=0))


def test_the_32b_lies_on_two_servers_of_12_gib_which_8_gb_of_ram_alone_do_not_hold(
    large: BundleModel,
) -> None:
    machine = Machine(ram=8 * 10**9, n_threads=4, gpus=servers(12 * GIB, 12 * GIB))
    plan = planned(large, machine)
    assert plan.settings.n_gpu_layers == 65
    assert plan.memory.ram < machine.ram
    assert all(plan.memory.gpu(number) <= 12 * GIB for number in (1, 2))
    # A tensor is sent whole, and is in the memory of both sides then.
    output = large.decoder("Q4_K_M").weights.output.nbytes
    sent = next(part for part in plan.memory.parts if part.name == "weights on their way")
    held = sum(
        part.n_bytes
        for part in plan.memory.parts
        if part.device == 0 and part.name in {"compute buffer", "output buffer", "work buffer"}
    )
    assert sent.n_bytes == output - held
    line, table = plan_line(plan), plan_table(plan)
    assert "33 layers and " in line
    assert " on server:2" in line
    assert "servers add memory, not speed" in table
    assert "played" not in table  # nothing here is a GPU
    assert plan.limit.startswith("the servers' bandwidth and the network's delay: all layers are there")


def test_what_servers_have_no_room_for_stays_in_ram(large: BundleModel) -> None:
    machine = Machine(ram=14 * 10**9, n_threads=4, gpus=servers(8 * GIB))
    plan = planned(large, machine)
    assert 10 < plan.settings.n_gpu_layers < 40
    assert plan.memory.ram <= machine.ram
    assert plan.memory.gpu(1) <= 8 * GIB
    assert not [part for part in plan.memory.parts if part.name == "reserve"]


def test_this_machines_gpu_comes_before_the_servers_and_keeps_its_reserve(large: BundleModel) -> None:
    gpus = (Gpu(name="card", memory=12 * GIB), *servers(12 * GIB))
    plan = planned(large, Machine(ram=8 * 10**9, n_threads=4, gpus=gpus))
    assert plan.settings.op_offload
    assert [part.device for part in plan.memory.parts if part.name == "reserve"] == [1]
    assert {part.kind for part in plan.memory.parts if part.device == 1} == {"gpu"}
    assert {part.kind for part in plan.memory.parts if part.device == 2} == {"remote"}


def test_with_servers_alone_weights_that_stay_may_be_repacked(large: BundleModel) -> None:
    machine = Machine(ram=24 * 10**9, n_threads=4, gpus=servers(8 * GIB))
    plan = planned(large, machine, use_extra_bufts=True)
    assert [part for part in plan.memory.parts if part.name.endswith(", repacked")]

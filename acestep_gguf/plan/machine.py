"""The machine to plan for: its memory, CPUs and GPUs. Those of this one are measured."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from acestep_gguf.addresses import Address
from acestep_gguf.cpus import usable_cpus
from acestep_gguf.llama.rebuild import rebuild_command
from acestep_gguf.options import TowerProvider
from acestep_gguf.ort_builds import CUDA_BUILD, installed_builds
from acestep_gguf.plan.cgroup import cgroup_limits

CPU_DEVICES: Final = Path("/sys/devices")
# Measured (docs/hardware.md): Python with all packages.
PROCESS_BYTES: Final = 48 * 2**20
# A machine with such a file has a GPU; how llama-cpp-python is built for it.
GPU_MARKS: Final = (
    (Path("/proc/driver/nvidia/version"), "CUDA", "-DGGML_CUDA=on"),
    (Path("/dev/nvidia0"), "CUDA", "-DGGML_CUDA=on"),
    (Path("/dev/kfd"), "ROCm", "-DGGML_HIP=on"),
    (Path("/dev/dri/renderD128"), "Vulkan", "-DGGML_VULKAN=on"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU; ``memory`` is what is free, in bytes.

    A ``remote`` one is the device of an RPC server; what one that ``shares_ram`` has is this machine's RAM.
    """

    name: str
    memory: int
    remote: bool = False
    shares_ram: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Memory, threads and GPUs to plan with.

    Args:
        ram: bytes of RAM that this process may have in all.
        n_threads: threads to compute with.
        gpus: those that llama.cpp can use, those of servers last.
        limited_by: what limits ``ram``, "memory" or "cgroup".
        tower_provider: what of onnxruntime suits the tower if there is room: "cuda", or the CPU.
        unused_gpu: the build of llama.cpp, such as "CUDA", for a GPU that the installed build cannot use.
    """

    ram: int
    n_threads: int
    gpus: tuple[Gpu, ...] = ()
    limited_by: str = "memory"
    tower_provider: TowerProvider = "cpu"
    unused_gpu: str | None = None

    @property
    def shares_ram(self) -> bool:
        """Whether its GPUs, those of servers aside, have no memory but its RAM."""
        return any(gpu.shares_ram for gpu in self.gpus)

    @property
    def n_remote(self) -> int:
        """How many of the GPUs are devices of servers."""
        return sum(gpu.remote for gpu in self.gpus)


def this_machine(rpc: Sequence[Address] = ()) -> Machine:
    """The machine that this process runs on, as it is now; GPUs are those of the installed llama.cpp.

    Args:
        rpc: servers whose devices are added.

    Raises:
        UsageError: this llama.cpp was built without RPC.
        RpcServerError: a server is not there, is busy, or is of another version.
    """
    from acestep_gguf.llama.devices import gpu_devices, gpus_share_ram  # noqa: PLC0415 (loads llama.cpp)
    from acestep_gguf.llama.rpc.devices import remote_devices  # noqa: PLC0415 (the same)

    limits = cgroup_limits()
    own = psutil.Process().memory_info()
    # What a plan counts, too; anything else that the process holds, such as another model, it cannot have.
    held = min(own.rss - getattr(own, "shared", 0), PROCESS_BYTES)
    available = float(psutil.virtual_memory().available)
    shares = gpus_share_ram()
    gpus = tuple(Gpu(name=name, memory=free, shares_ram=shares) for name, free in gpu_devices())
    servers = remote_devices(rpc) if rpc else []
    return Machine(
        ram=int(min(available, limits.memory_available)) + held,
        n_threads=usable_threads(limits.cpus),
        gpus=(*gpus, *(Gpu(name=server.name, memory=server.memory, remote=True) for server in servers)),
        tower_provider="cuda" if gpus and CUDA_BUILD in installed_builds() else "cpu",
        limited_by="cgroup" if limits.memory_available < available else "memory",
        unused_gpu=None if gpus else _seen_gpu(),
    )


def usable_threads(quota: float = math.inf, devices: Path = CPU_DEVICES) -> int:
    """Threads to compute with: CPUs that affinity and the quota allow, of the fast kind if there are two.

    A slow core among fast ones holds all of them up, since llama.cpp's threads wait for each other.
    """
    usable = usable_cpus()
    fast = _fast_cpus(devices)
    if hasattr(psutil.Process, "cpu_affinity") and fast:
        usable = len(fast & set(psutil.Process().cpu_affinity())) or usable
    return max(1, min(usable, math.ceil(min(quota, usable))))


def _fast_cpus(devices: Path) -> set[int]:
    """Numbers of the performance cores; empty where all are alike, or the system does not say.

    Linux says it of Intel's hybrid CPUs (cpu_core beside cpu_atom) and, by their capacity, of ARM's.
    """
    core, atom = devices / "cpu_core/cpus", devices / "cpu_atom/cpus"
    try:
        if atom.exists():
            return _cpu_list(core.read_text())
        capacities = {
            int(path.parent.name.removeprefix("cpu")): int(path.read_text())
            for path in devices.glob("system/cpu/cpu[0-9]*/cpu_capacity")
        }
    except (OSError, ValueError):
        return set()
    most = max(capacities.values(), default=0)
    fast = {cpu for cpu, capacity in capacities.items() if capacity > 0.75 * most}
    return fast if len(fast) < len(capacities) else set()


def _cpu_list(text: str) -> set[int]:
    """CPUs of a list like ``0-3,8``."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _seen_gpu() -> str | None:
    if sys.platform == "darwin":
        return "Metal"
    return next((build for path, build, _ in GPU_MARKS if path.exists()), None)


def reinstall_command(build: str) -> str:
    """The command that installs llama-cpp-python for a GPU; ``build`` as in ``Machine.unused_gpu``."""
    flags = {build: flag for _, build, flag in GPU_MARKS} | {"Metal": "-DGGML_METAL=on"}
    return rebuild_command(flags[build])

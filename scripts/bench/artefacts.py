"""What the benchmarks of answers compare: random models for all sides and pictures, made once and kept.

Each bundle is made by our own conversion, which also writes the mmproj files for llama.cpp; both sides
run the same decoder file. A bundle has bundle.json last, so one that has it is whole; checkpoints go away
when their bundle is there, and are made again, of the same numbers, for what is added to it.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from acestep_gguf.bundle.schema import Bundle
from scripts.bench import openvino_peer
from scripts.bench.llama_cpp_tools import llama_cpp_source

OUR_PROGRAM = Path(sys.executable).parent / "acestep-gguf"
DEMO = Path(__file__).parents[2] / "acestep_gguf" / "demo"
PREFILL = "--prefill"
PICTURE_SIZE = (640, 480)


@dataclass(frozen=True)
class Scale:
    """Shapes of synthetic_checkpoint.py; ``draft`` guesses ahead for ``decoder``."""

    decoder: str
    vision: str
    draft: str


SCALES = {
    "1.5b": Scale("1.5b", "vit-h-14-448", "0.5b"),
    "tiny": Scale("tiny", "tiny", "tiny"),  # to try the benchmark itself
}


class Artefacts:
    """Paths; what is not there yet is made when it is first asked for."""

    def __init__(self, folder: Path, scale: Scale) -> None:
        self.folder = folder
        self.scale = scale
        folder.mkdir(parents=True, exist_ok=True)

    def bundle(self) -> Path:
        """Float32 and int8 tower, Q4_K_M decoder and its int8 layers, mmproj as F16 and Q8_0."""
        return self._bundle("bundle", self._shapes(), ["--mmproj", "F16", "--mmproj", "Q8_0", PREFILL])

    def openvino_model(self) -> Path:
        """The same model for OpenVINO GenAI, its decoder in 4 bits and its tower in 8."""
        model = self.folder / "openvino"
        if not model.exists():
            checkpoint = self._checkpoint("openvino", self._shapes())
            openvino_peer.convert(checkpoint, model)
            shutil.rmtree(checkpoint)
        return model

    def outlier_bundle(self) -> Path:
        """The same tower with outlier channels, and any decoder."""
        return self._bundle("outliers", ["--shape", "tiny", "--vision", self.scale.vision, "--outliers"])

    def draft_bundle(self) -> Path:
        """A smaller decoder of the same vocabulary, with a small tower of its own."""
        return self._bundle("draft", ["--shape", self.scale.draft, "--vision", "tiny"])

    def demo_bundle(self) -> Path:
        """The demo checkpoint."""
        return self._convert("demo", DEMO, ["-q", "F16", "-q", "Q4_K_M"])

    def picture(self, number: int) -> Path:
        """A blurred random picture; another number is another picture."""
        path = self.folder / f"picture-{number}.png"
        if not path.exists():
            noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
            picture = Image.fromarray(noise).resize(PICTURE_SIZE).filter(ImageFilter.GaussianBlur(4))
            picture.save(path)
        return path

    def _bundle(self, name: str, shapes: list[str], extra: list[str] | None = None) -> Path:
        bundle, options = self.folder / name, ["-q", "Q4_K_M", *(extra or [])]
        if not self._is_whole(bundle, options):
            checkpoint = self._checkpoint(name, shapes)
            self._convert(name, checkpoint, options)
            shutil.rmtree(checkpoint)
        return bundle

    def _is_whole(self, bundle: Path, options: Sequence[str]) -> bool:
        """Whether nothing is to be made; a bundle of before there were int8 layers gets them."""
        if not (bundle / "bundle.json").exists():
            return False
        return PREFILL not in options or Bundle.read(bundle).prefill is not None

    def _shapes(self) -> list[str]:
        return ["--shape", self.scale.decoder, "--vision", self.scale.vision]

    def _checkpoint(self, name: str, shapes: list[str]) -> Path:
        checkpoint = self.folder / f"{name}-checkpoint"
        shutil.rmtree(checkpoint, ignore_errors=True)
        vocabulary = llama_cpp_source() / "models" / "ggml-vocab-qwen2.gguf"
        options = [*shapes, "--independent-rows", "--vocabulary", str(vocabulary)]
        command = [sys.executable, "-m", "scripts.synthetic.checkpoint", *options, str(checkpoint)]
        subprocess.run(command, check=True)
        return checkpoint

    def _convert(self, name: str, checkpoint: Path, options: list[str]) -> Path:
        bundle = self.folder / name
        if not self._is_whole(bundle, options):
            command = [str(OUR_PROGRAM), "convert", str(checkpoint), str(bundle), *options]
            subprocess.run(command, check=True)
        return bundle

"""Answers blocks of pictures with OpenVINO GenAI; run by openvino_peer.py in its environment."""

import json
import sys
import time

import numpy as np
import openvino
import openvino_genai
from PIL import Image


def main() -> None:
    """A line of standard input is a block of pictures, a line of standard output what they cost."""
    pipeline = openvino_genai.ContinuousBatchingPipeline(sys.argv[1], openvino_genai.SchedulerConfig(), "CPU")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = task["n_tokens"]
        config.ignore_eos = True
        began = time.perf_counter()
        images = [[openvino.Tensor(pixels(path))] for path in task["pictures"]]
        results = pipeline.generate(
            [task["question"]] * len(images), images=images, generation_config=[config] * len(images)
        )
        seconds = time.perf_counter() - began
        texts = [result.texts[0] for result in results]
        print(json.dumps({"seconds": seconds, "n_answers": len(texts)}), flush=True)


def pixels(path: str) -> np.ndarray:
    """uint8 [1, height, width, 3]."""
    return np.asarray(Image.open(path).convert("RGB"))[None]


if __name__ == "__main__":
    main()

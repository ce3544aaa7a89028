"""Waits for the first token about one picture after another with OpenVINO GenAI, in its environment.

python openvino_first_tokens.py MODEL QUESTION PICTURE...
"""

import json
import sys
import time

import numpy as np
import openvino
import openvino_genai
from PIL import Image


def main() -> None:
    """A line of standard output for each picture: seconds, and what of them went into what."""
    folder, question, *pictures = sys.argv[1:]
    pipeline = openvino_genai.VLMPipeline(folder, "CPU")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = 1
    config.ignore_eos = True
    for path in pictures:
        began = time.perf_counter()
        picture = np.asarray(Image.open(path).convert("RGB"))[None]
        found = pipeline.generate(question, images=[openvino.Tensor(picture)], generation_config=config)
        seconds = time.perf_counter() - began
        metrics = found.perf_metrics
        # Both in ms: to the first token, and of that the tower and the embeddings of the text.
        prefill = metrics.get_ttft().mean - metrics.get_prepare_embeddings_duration().mean
        figures = {
            "seconds": seconds,
            "prefill_s": prefill / 1000,
            "prompt_tokens": metrics.get_num_input_tokens(),
        }
        print(json.dumps(figures | defaults()), flush=True)


def defaults() -> dict[str, str]:
    """What OpenVINO computes with on this CPU unless told otherwise, such as u8 and bf16."""
    core = openvino.Core()
    return {
        "version": openvino.get_version(),
        "kv_cache": core.get_property("CPU", "KV_CACHE_PRECISION").get_type_name(),
        "computes_in": core.get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name(),
    }


if __name__ == "__main__":
    main()

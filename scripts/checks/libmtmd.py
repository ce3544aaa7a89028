"""llama.cpp's own way from a picture to an answer (libmtmd and libllama of llama-cpp-python), as a peer.

Nothing of our runtime takes part: pictures are resized, encoded and put into the prompt by llama.cpp.

Its LLaVA graph puts the class token of a CLIP tower behind the patches, and then gives every patch its
neighbour's position, and the decoder the class token in the place of the first patch
(https://github.com/ggml-org/llama.cpp/issues/25814). ``class_token_first`` does what the proposed fix does,
through llama.cpp's own callback, so that the rest can be compared.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp import mtmd_cpp as mtmd
from numpy.typing import NDArray
from PIL import Image

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.llama.library import ggml_function, lib

MARKER = mtmd.mtmd_default_marker().decode()
SEQUENCE = 0
FLASH_ATTENTION_OFF = 0


_op_desc = ggml_function("ggml_op_desc", ctypes.c_char_p, ctypes.c_void_p)
_get_data = ggml_function("ggml_get_data", ctypes.c_void_p, ctypes.c_void_p)
_nelements = ggml_function("ggml_nelements", ctypes.c_int64, ctypes.c_void_p)
_nrows = ggml_function("ggml_nrows", ctypes.c_int64, ctypes.c_void_p)

EMBEDDING_LENGTH = "clip.vision.embedding_length"


_quiet = lib.llama_log_callback(lambda _level, _text, _user_data: None)


class LlamaCppPair:
    """A decoder and an mmproj file, loaded by llama.cpp on the CPU."""

    def __init__(
        self,
        decoder: Path,
        mmproj: Path,
        *,
        n_ctx: int = 2048,
        n_threads: int = 2,
        class_token_first: bool = False,
    ) -> None:
        lib.llama_backend_init()
        lib.llama_log_set(_quiet, ctypes.c_void_p(0))
        mtmd.mtmd_log_set(_quiet, ctypes.c_void_p(0))
        mtmd.mtmd_helper_log_set(_quiet, ctypes.c_void_p(0))
        model_params = lib.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(os.fsencode(decoder), model_params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {decoder}")
        context_params = lib.llama_context_default_params()
        context_params.n_ctx = n_ctx
        context_params.n_threads = context_params.n_threads_batch = n_threads
        context_params.flash_attn_type = FLASH_ATTENTION_OFF
        self._context = lib.llama_init_from_model(self._model, context_params)
        self._n_batch = context_params.n_batch
        params = mtmd.mtmd_context_params_default()
        params.use_gpu = params.print_timings = params.warmup = False
        params.n_threads = n_threads
        params.flash_attn_type = FLASH_ATTENTION_OFF
        if class_token_first:
            self._tower_width = read_gguf_header(mmproj).metadata[EMBEDDING_LENGTH]
            self._callback = lib.ggml_backend_sched_eval_callback(self._put_class_token_first)
            params.cb_eval = self._callback  # which does not keep it alive
        self._mtmd = mtmd.mtmd_init_from_file(os.fsencode(mmproj), self._model, params)
        if not self._mtmd:
            raise RuntimeError(f"llama.cpp cannot load {mmproj}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._n_embd = lib.llama_model_n_embd(self._model)

    def __enter__(self) -> LlamaCppPair:
        return self

    def __exit__(self, *_: object) -> None:
        mtmd.mtmd_free(self._mtmd)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)

    def image_embeds(self, image: Image.Image) -> NDArray[np.float32]:
        """Embeds of a picture, float32 [n_image_tokens, n_embd]; llama.cpp resizes it."""
        return self.parts(image)[0]

    def parts(self, image: Image.Image) -> list[NDArray[np.float32]]:
        """The same of each part that llama.cpp makes of a picture, in the order of its prompt."""
        found = []
        with self._chunks(MARKER, [image]) as chunks:
            for number in range(mtmd.mtmd_input_chunks_size(chunks)):
                chunk = mtmd.mtmd_input_chunks_get(chunks, number)
                if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                    continue
                if mtmd.mtmd_encode_chunk(self._mtmd, chunk) != 0:
                    raise RuntimeError("llama.cpp cannot encode the picture")
                n_tokens = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
                embeds = mtmd.mtmd_get_output_embd(self._mtmd)
                found.append(np.ctypeslib.as_array(embeds, (n_tokens, self._n_embd)).copy())
        return found

    def answer(self, prompt: str, images: Sequence[Image.Image], max_tokens: int) -> str:
        """The greedy answer to ``prompt``, a rendered template with ``MARKER`` for each picture."""
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        with self._chunks(prompt, images) as chunks:
            n_past = lib.llama_pos(0)
            status = mtmd.mtmd_helper_eval_chunks(
                self._mtmd, self._context, chunks, 0, SEQUENCE, self._n_batch, True, ctypes.byref(n_past)
            )
        if status != 0:
            raise RuntimeError(f"llama.cpp cannot read the prompt ({status})")
        answer = b""
        for _ in range(max_tokens):
            logits = lib.llama_get_logits_ith(self._context, -1)
            token = int(np.ctypeslib.as_array(logits, (lib.llama_vocab_n_tokens(self._vocab),)).argmax())
            if lib.llama_vocab_is_eog(self._vocab, token):
                break
            answer += self._piece(token)
            batch = lib.llama_batch_get_one((lib.llama_token * 1)(token), 1)
            if lib.llama_decode(self._context, batch) != 0:
                raise RuntimeError("llama.cpp cannot decode")
        return answer.decode("utf-8", "replace")

    @contextmanager
    def _chunks(self, text: str, images: Sequence[Image.Image]) -> Iterator[Any]:
        pixels = [np.ascontiguousarray(image.convert("RGB"), np.uint8) for image in images]
        bitmaps = [
            mtmd.mtmd_bitmap_init(
                array.shape[1], array.shape[0], array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            )
            for array in pixels
        ]
        chunks = mtmd.mtmd_input_chunks_init()
        try:
            encoded = text.encode()
            given = mtmd.mtmd_input_text(encoded, len(encoded), add_special=True, parse_special=True)
            array = (mtmd.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
            status = mtmd.mtmd_tokenize(self._mtmd, chunks, ctypes.byref(given), array, len(bitmaps))
            if status != 0:
                raise RuntimeError(f"llama.cpp cannot tokenize the prompt ({status})")
            yield chunks
        finally:
            mtmd.mtmd_input_chunks_free(chunks)
            for bitmap in bitmaps:
                mtmd.mtmd_bitmap_free(bitmap)

    def _put_class_token_first(self, tensor: int, is_question: bool, _user_data: int) -> bool:
        """Called for each step of the tower's graph: whether we want to see it, and then with its result."""
        n_rows = _nrows(tensor)
        n_per_row = _nelements(tensor) // n_rows
        # Features of several layers are longer rows.
        if _op_desc(tensor) != b"CONCAT" or n_per_row != self._tower_width:
            return not is_question
        if not is_question:
            floats = ctypes.cast(_get_data(tensor), ctypes.POINTER(ctypes.c_float))
            rows = np.ctypeslib.as_array(floats, (n_rows, n_per_row))
            rows[:] = np.roll(rows, 1, axis=0)
        return True

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:length]

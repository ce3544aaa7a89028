"""llama.cpp behind small classes: a model, and a context to compute in.

llama.cpp ends the process on bad input (an assertion), so each method first checks what it is given.
No object of these classes may be used by two threads at once.
"""

import ctypes
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from acestep_gguf.bundle.gguf_header import read_gguf_header
from acestep_gguf.errors import DecodeError, UsageError
from acestep_gguf.llama.backend import Handle, Log, StopFlag, backend
from acestep_gguf.llama.batch import Batch
from acestep_gguf.llama.devices import cpu_overrides, gpus_and_servers
from acestep_gguf.llama.eval_callback import ProductWatch
from acestep_gguf.llama.library import lib
from acestep_gguf.llama.params import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    ContextParams,
    ModelParams,
    check_repacking,
)
from acestep_gguf.llama.state_start import CELL_COUNT, N_STREAMS_AT, state_start
from acestep_gguf.llama.tekken import NAME as TEKKEN
from acestep_gguf.llama.tekken import read_tekken

FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

# enum llama_load_mode by whether the file is mapped, and whether its pages are locked.
LOAD_MODES: Final = {(False, False): 0, (True, False): 1, (False, True): 2, (True, True): 3}
ABORTED: Final = 2  # what llama_decode returns when its abort callback ended it

# A name that no tensor has. With an override, llama.cpp does not make four copies of what crosses from one
# server to another, to let them compute at the same time: servers are there for their memory.
NO_PIPELINE: Final = "^$"

NOT_FINITE: Final = "the decoder computed logits that are not finite: its weights are damaged."


class Model(Handle):
    """The weights and the vocabulary of a decoder.

    Args:
        path: a GGUF file whose header was checked (see decoder_info).
        params: how it is loaded.

    Raises:
        UsageError: layers on a GPU that llama.cpp does not have, or repacking on a CPU with AMX.
        RpcServerError: a server is not there, or is busy.
        DecodeError: llama.cpp refuses the file.
        BundleError: its Tekken vocabulary is damaged.
    """

    def __init__(self, path: Path, params: ModelParams | None = None) -> None:
        log = backend()
        params = params or ModelParams()
        if params.n_gpu_layers and not params.rpc and not lib.llama_supports_gpu_offload():
            raise UsageError(
                "n_gpu_layers cannot be used: this llama-cpp-python was built without a GPU.",
                settings=["n_gpu_layers"],
            )
        check_repacking(params.use_extra_bufts)
        native = lib.llama_model_default_params()
        native.n_gpu_layers = params.n_gpu_layers
        native.load_mode = LOAD_MODES[params.use_mmap, params.use_mlock]
        native.use_extra_bufts = params.use_extra_bufts
        if len(params.tensor_split) > 1:
            shares = (ctypes.c_float * lib.llama_max_devices())(*params.tensor_split)
            native.tensor_split = shares
        cpu_tensors = params.cpu_tensors
        if params.rpc and params.n_gpu_layers:
            devices = gpus_and_servers(params.rpc)
            native.devices = ctypes.cast(devices, ctypes.c_void_p)
            cpu_tensors = (*cpu_tensors, NO_PIPELINE)
        if cpu_tensors:
            overrides = cpu_overrides(cpu_tensors)
            native.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
        log.clear()
        pointer = lib.llama_model_load_from_file(os.fsencode(path), native)
        super().__init__(pointer)
        if pointer is None:
            raise DecodeError(f"llama.cpp cannot load {path}: {log.errors()}.")
        if params.use_mlock:
            _warn_unless_locked(log)
        self._vocab = lib.llama_model_get_vocab(pointer)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self._vocab)
        self.n_embd: int = lib.llama_model_n_embd(pointer)
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(pointer)
        self._tekken = read_tekken(read_gguf_header(path)) if self._pre_tokenizer() == TEKKEN else None

    def _free(self, pointer: Any) -> None:
        lib.llama_model_free(pointer)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of ``text``; nothing in it becomes a control token and none is added."""
        _ = self.pointer
        if self._tekken is not None:
            return self._tekken.encode(text)
        if lib.llama_vocab_type(self._vocab) != lib.LLAMA_VOCAB_TYPE_SPM:
            return self._tokenize(text)
        # llama.cpp may put a space before a text: here it comes before a new line, which merges with nothing.
        before = self._tokenize("\n")
        return self._tokenize(f"\n{text}")[len(before) :]

    def _pre_tokenizer(self) -> str:
        """How llama.cpp cuts text into words; empty for SentencePiece."""
        buffer = ctypes.create_string_buffer(64)
        key = b"tokenizer.ggml.pre"
        length = lib.llama_model_meta_val_str(self.pointer, key, buffer, len(buffer))
        return buffer.raw[: max(length, 0)].decode("utf-8", "replace")

    def _tokenize(self, text: str) -> list[int]:
        data = text.encode()
        tokens = (ctypes.c_int32 * (len(data) + 1))()  # at most one a byte, and one for a space before them
        count = lib.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), False, False)
        if count < 0:
            raise DecodeError(f"llama.cpp cannot tokenize a text of {len(data)} bytes.")
        return tokens[:count]

    def token_bytes(self, token: int) -> bytes:
        """Text of a token, which may end inside a UTF-8 character; empty for a control token."""
        self.check_tokens([token])
        buffer = ctypes.create_string_buffer(64)
        length = lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:length]

    def check_tokens(self, tokens: Sequence[int]) -> None:
        """Refuse ids outside the vocabulary.

        Raises:
            DecodeError: there is one.
        """
        _ = self.pointer
        if tokens and not (min(tokens) >= 0 and max(tokens) < self.n_vocab):
            raise DecodeError(f"a token id lies outside the vocabulary of {self.n_vocab}: check who made it.")


class Context(Handle):
    """A KV cache and what computes on it.

    Args:
        model: whose weights it multiplies.
        params: how.
        products: sees what the weights are multiplied with. After an error of its own, nothing that the
            context holds is of use.

    Raises:
        DecodeError: llama.cpp cannot make it, for want of memory for instance.
    """

    def __init__(self, model: Model, params: ContextParams, products: ProductWatch | None = None) -> None:
        self.model = model
        self.params = params
        self._products = products
        native = lib.llama_context_default_params()
        native.n_ctx = params.n_ctx * params.n_seq_max
        native.n_seq_max = params.n_seq_max
        native.n_batch = self.n_batch = min(params.n_batch, params.n_ctx)
        native.n_ubatch = min(params.n_ubatch, self.n_batch)
        native.n_outputs_max = params.n_outputs_max
        native.n_threads = params.n_threads
        native.n_threads_batch = params.n_threads_batch
        native.type_k = CACHE_TYPES[params.type_k]
        native.type_v = CACHE_TYPES[params.type_v]
        native.flash_attn_type = FLASH_ATTENTION[params.flash_attn]
        native.offload_kqv = params.offload_kqv
        native.op_offload = params.op_offload
        native.no_perf = True
        if products is not None:
            native.cb_eval = products.callback
        log = backend()
        log.clear()
        pointer = lib.llama_init_from_model(model.pointer, native)
        super().__init__(pointer)
        if pointer is None:
            raise DecodeError(
                f"llama.cpp cannot make a context of {params.n_ctx} tokens: {log.errors()}; "
                "try a smaller n_ctx.",
                settings=["n_ctx"],
            )
        self._memory = lib.llama_get_memory(pointer)
        self._batch = Batch(max(self.n_batch, params.n_seq_max))
        # In llama.cpp's state of a sequence, for the other streams.
        self.state_room = (params.n_seq_max - 1) * CELL_COUNT.itemsize
        self._logits_type = ctypes.POINTER(ctypes.c_float * model.n_vocab)
        self._n_outputs = 0
        self._stop: StopFlag | None = None

    def _free(self, pointer: Any) -> None:
        lib.llama_free(pointer)

    def decode_tokens(
        self, tokens: Sequence[int], position: int, *, n_outputs: int = 0, sequence: int = 0
    ) -> None:
        """Compute up to ``n_batch`` tokens from ``position`` on; the last ``n_outputs`` give logits.

        Raises:
            DecodeError: ids, positions or counts out of range, or llama.cpp failed.
        """
        self.model.check_tokens(tokens)
        self._check_range(len(tokens), position, n_outputs, sequence)
        rows = np.asarray(tokens, np.int32)
        self._decode(self._batch.one_sequence(rows, position, n_outputs, sequence), n_outputs)

    def decode_embeds(
        self, embeds: FloatArray, position: int, *, n_outputs: int = 0, sequence: int = 0
    ) -> None:
        """The same with ``embeds``, float32 [n, n_embd], in the place of token embeddings.

        Raises:
            DecodeError: shape, dtype, values, positions or counts out of range, or llama.cpp failed.
        """
        check_embeds(embeds, self.model.n_embd)
        self._check_range(len(embeds), position, n_outputs, sequence)
        rows = np.ascontiguousarray(embeds)
        self._decode(self._batch.one_sequence(rows, position, n_outputs, sequence), n_outputs)

    def decode_each(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """Compute one more token of each of ``sequences`` in one call; all give logits, in this order.

        Raises:
            DecodeError: ids or positions out of range, a sequence twice, or llama.cpp failed.
        """
        self.model.check_tokens(tokens)
        if not len(tokens) == len(positions) == len(sequences) == len(set(sequences)):
            raise DecodeError("a token and a position are needed for each sequence, and each sequence once.")
        if len(tokens) > self.params.n_outputs_max:
            raise DecodeError(f"{len(tokens)} outputs were asked for.")
        for position, sequence in zip(positions, sequences, strict=True):
            self._check_range(1, position, 1, sequence)
        self._decode(self._batch.each(np.asarray(tokens, np.int32), positions, sequences), len(tokens))

    def logits(self, index: int = -1) -> FloatArray:
        """Logits, float32 [n_vocab], of one of the outputs of the last call; -1 is the last.

        Raises:
            DecodeError: there is no such output, or a logit is not finite.
        """
        logits = self.logits_view(index)
        check_finite(logits)
        return logits.copy()

    def logits_view(self, index: int = -1) -> FloatArray:
        """The same where llama.cpp has them, unchecked, until the next call.

        Raises:
            DecodeError: there is no such output.
        """
        if not -self._n_outputs <= index < 0:
            raise DecodeError(f"output {index} was not asked for in the last call.")
        logits = ctypes.cast(lib.llama_get_logits_ith(self.pointer, index), self._logits_type)
        view: FloatArray = np.frombuffer(memoryview(logits.contents), np.float32)
        return view

    def keep(self, n_past: int, *, sequence: int = 0) -> None:
        """Forget everything of a sequence from position ``n_past`` on; 0 forgets all of it."""
        if n_past <= 0 and self.params.n_seq_max == 1:
            lib.llama_memory_clear(self._checked_memory(), True)
        elif not lib.llama_memory_seq_rm(self._checked_memory(), sequence, max(0, n_past), -1):
            raise DecodeError(f"llama.cpp cannot shorten its context to {n_past} tokens.")

    def copy(self, source: int, target: int) -> None:
        """Let the sequence ``target`` be what ``source`` is.

        llama.cpp copies whole sequences only: to copy a part of one ends the process.
        """
        self.keep(0, sequence=target)
        lib.llama_memory_seq_cp(self._checked_memory(), source, target, -1, -1)

    def watch(self, stop: StopFlag) -> None:
        """Let ``stop`` end calls, in the place of the flag before; an ended one raises Interrupted."""
        lib.llama_set_abort_callback(self.pointer, StopFlag.callback, ctypes.cast(stop.text, ctypes.c_void_p))
        self._stop = stop  # ctypes does not keep it alive

    def state_bytes(self, *, sequence: int = 0) -> int:
        """Size of ``state``."""
        return int(lib.llama_state_seq_get_size(self.pointer, sequence)) - self.state_room

    def state(self, *, sequence: int = 0, buffer: UInt8Array | None = None) -> UInt8Array:
        """A copy of the keys and values of all positions of a sequence, as ``restore`` takes it.

        It is what a context with this sequence alone would give.

        Args:
            sequence: of those that the context has.
            buffer: holds the copy from its beginning on; ``state_room`` bytes longer than it at least.

        Raises:
            DecodeError: llama.cpp failed.
        """
        log = backend()
        log.clear()
        n_bytes = self.state_bytes(sequence=sequence)
        n_written = n_bytes + self.state_room
        if buffer is None:
            buffer = np.empty(n_written, np.uint8)
        if len(buffer) < n_written:
            raise DecodeError(f"a state of {n_bytes} bytes does not fit into {len(buffer)}.")
        if lib.llama_state_seq_get_data(self.pointer, _bytes_of(buffer), n_written, sequence) != n_written:
            raise DecodeError(f"llama.cpp cannot copy its memory: {log.errors()}.")
        start = state_start(buffer[:4], self.n_past(sequence))
        n_before = sequence * CELL_COUNT.itemsize
        state = buffer[:n_bytes]
        if n_before:
            state[:] = buffer[n_before : n_before + n_bytes]
        state[: len(start)] = start
        return state

    def restore(self, state: UInt8Array, n_past: int, *, sequence: int = 0, has_room: bool = False) -> bool:
        """Take positions 0 to ``n_past`` - 1 from ``state``; whether it was one of this kind of context.

        If not, nothing of the sequence is computed any more. llama.cpp trusts the positions in a state, so
        they are checked here; it checks sizes and types itself. With ``has_room`` the last ``state_room``
        bytes are free, and ``state`` need not be copied.
        """
        if self.n_past(sequence):
            self.keep(0, sequence=sequence)
        start = state_start(state[:4], n_past)
        if len(state) <= len(start) or n_past > self.params.n_ctx or (state[: len(start)] != start).any():
            return False
        if self.state_room:
            if not has_room:
                state = np.concatenate([state, np.empty(self.state_room, np.uint8)])
            state[-self.state_room :] = 0
            state[N_STREAMS_AT : N_STREAMS_AT + 4].view("<u4")[0] = self.params.n_seq_max
        done = lib.llama_state_seq_set_data(self.pointer, _bytes_of(state), len(state), sequence)
        if done != len(state) or self.n_past(sequence) != n_past:
            self.keep(0, sequence=sequence)
            return False
        return True

    def check_stop(self) -> None:
        """Raise Interrupted if the flag that is watched is set."""
        if self._stop is not None:
            self._stop.check()

    def n_past(self, sequence: int = 0) -> int:
        """Positions of a sequence that are computed."""
        return int(lib.llama_memory_seq_pos_max(self._checked_memory(), sequence)) + 1

    def _checked_memory(self) -> Any:
        _ = self.pointer
        return self._memory

    def _check_range(self, count: int, position: int, n_outputs: int, sequence: int) -> None:
        if not 0 <= sequence < self.params.n_seq_max:
            raise DecodeError(f"there is no sequence {sequence} in this context.")
        n_past = self.n_past(sequence)
        if position != n_past:
            raise DecodeError(f"position {position} does not follow the {n_past} that were computed.")
        if not 1 <= count <= self.n_batch or position + count > self.params.n_ctx:
            raise DecodeError(f"{count} tokens from {position} on fit neither n_batch nor n_ctx.")
        if not 0 <= n_outputs <= min(count, self.params.n_outputs_max):
            raise DecodeError(f"{n_outputs} outputs of {count} tokens were asked for.")

    def _decode(self, batch: Any, n_outputs: int) -> None:
        log = backend()
        log.clear()
        self._n_outputs = 0
        status = lib.llama_decode(self.pointer, batch)
        if self._products is not None:
            self._products.check()
        if status == ABORTED and self._stop is not None:
            self._stop.check()
        if status != 0:
            raise DecodeError(f"llama.cpp failed to decode (status {status}): {log.errors()}.")
        self._n_outputs = n_outputs


def _warn_unless_locked(log: Log) -> None:
    """llama.cpp goes on with weights that may be paged out, and only logs that."""
    for line in log.lines:
        if "failed to mlock" in line or "mlock not supported" in line:
            reason = line.partition("bytes): ")[2].partition("\n")[0] or "not supported here"
            warnings.warn(
                f"the weights can be paged out, they could not be locked in memory ({reason}): "
                "raise the limit of locked memory (ulimit -l).",
                stacklevel=3,
            )
            return


def _bytes_of(array: UInt8Array) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def check_finite(logits: FloatArray) -> None:
    """Refuse logits that are not all finite.

    Raises:
        DecodeError: one is.
    """
    if not np.isfinite(logits).all():
        raise DecodeError(NOT_FINITE)


def check_embeds(embeds: FloatArray, n_embd: int) -> None:
    """Check embeds that are about to be fed to a decoder: float32 [n, n_embd], n > 0, finite.

    Raises:
        DecodeError: they are not.
    """
    if embeds.dtype != np.float32 or embeds.ndim != 2 or embeds.shape[1] != n_embd or len(embeds) == 0:
        raise DecodeError(
            f"embeds are {embeds.dtype} {embeds.shape}, this decoder takes float32 (n, {n_embd})."
        )
    if not np.isfinite(embeds).all():
        raise DecodeError("embeds are not finite: the vision tower or its input is damaged.")

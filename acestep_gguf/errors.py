"""Every error that this software raises on purpose; the command line prints its one line and exits with 1."""

from collections.abc import Sequence


class AceStepError(Exception):
    """Root of all errors: its message is one sentence that says what to do.

    ``settings`` are the options that the message names, as options.py calls them; one that it advises is
    written ``n_ctx=4096``. The command line puts its flags in their place.
    """

    def __init__(self, message: str, *, settings: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.settings = tuple(settings)


class CheckpointError(AceStepError):
    """A checkpoint is missing, damaged or contradicts itself."""


class SourceLostError(CheckpointError):
    """A file of a checkpoint was lost or cut short while it was read."""


class UnsupportedModelError(AceStepError):
    """A checkpoint is sound, but of a model that this software does not run."""


class BundleError(AceStepError):
    """A bundle, or a file in it, is missing, damaged, half-written or too new."""


class ImatrixError(AceStepError):
    """An importance matrix is missing, damaged or of another model."""


class ImageError(AceStepError):
    """A picture is missing, of another format, damaged or too large; or a file of image embeds is."""


class PromptError(AceStepError):
    """A question or a list of messages cannot be put to this model."""


class TemplateLimitError(PromptError):
    """A chat template was stopped, because it does more than it may."""


class ConversationError(AceStepError):
    """A saved conversation is missing or damaged, a picture of it has changed, or it cannot be written."""


class ContextOverflowError(PromptError):
    """A prompt needs more tokens than the context holds."""


class DecodeError(AceStepError):
    """llama.cpp or onnxruntime failed while loading or answering."""


class UsageError(AceStepError):
    """A setting is out of its range, or a closed or busy model is used."""


class QueueFullError(AceStepError):
    """As many questions wait as may; ask again later."""


class RpcServerError(AceStepError):
    """An RPC server cannot be reached, is busy, or is none that this llama.cpp can use."""


class MemoryShortageError(AceStepError):
    """No plan fits into the memory that there is; the message names the nearest ones that would."""


class BatchError(AceStepError):
    """The pictures, the journal or the table of a batch cannot be used."""


class BenchmarkError(AceStepError):
    """The file of a benchmark cannot be read, or its answers cannot be scored."""


class MissingPackageError(AceStepError):
    """A package of an extra is not installed: ``convert`` is what writing files needs."""

    def __init__(self, package: str, extra: str = "convert", *, what: str = "this") -> None:
        super().__init__(f"{what} needs the {package} package: pip install 'acestep-gguf[{extra}]'.")

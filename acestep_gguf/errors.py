"""Every error that this software raises on purpose; the command line prints its one line and exits with 1."""


class AceStepError(Exception):
    """Root of all errors: its message is one sentence that says what to do."""


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
    """A picture is missing, not a JPEG, PNG or WEBP, damaged or too large."""


class PromptError(AceStepError):
    """A question or a list of messages cannot be put to this model."""


class ContextOverflowError(PromptError):
    """A prompt needs more tokens than the context holds."""


class DecodeError(AceStepError):
    """llama.cpp or onnxruntime failed while loading or answering."""


class UsageError(AceStepError):
    """A setting is out of its range, or a closed or busy model is used."""


class MissingPackageError(AceStepError):
    """A package of the ``convert`` extra, which writing files needs, is not installed."""

    def __init__(self, package: str) -> None:
        super().__init__(f"this needs the {package} package: pip install 'acestep-gguf[convert]'.")

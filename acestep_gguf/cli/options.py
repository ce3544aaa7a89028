"""Options that several verbs share, in llama.cpp's words."""

from pathlib import Path
from typing import Annotated

import typer

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `convert` wrote.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

# As in llama-quantize.
TensorTypes = Annotated[
    list[str] | None,
    typer.Option("--tensor-type", metavar="REGEX=TYPE", help="Type of the tensors with such a name; repeat."),
]
OutputTensorType = Annotated[str | None, typer.Option(metavar="TYPE", help="Type of output.weight.")]
TokenEmbeddingType = Annotated[str | None, typer.Option(metavar="TYPE", help="Type of token_embd.weight.")]
Pure = Annotated[bool, typer.Option("--pure", help="One type for all matrices, no mixture.")]
ImatrixFile = Annotated[Path | None, typer.Option("--imatrix", help="Importance matrix of llama-imatrix.")]
TowerPrecisions = Annotated[
    list[str] | None,
    typer.Option("--vision", help="Precision of the tower, float32 or int8; repeat for both, the default."),
]
CalibrationPictures = Annotated[
    Path | None,
    typer.Option(
        "--calibration", help="Folder of pictures that show what int8 would ruin; by default our own."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show sizes, types, disk and memory; write nothing.")]
LogJson = Annotated[bool, typer.Option("--log-json", help="Print what happens as JSON, an object a line.")]
Threads = Annotated[int | None, typer.Option("-t", "--threads", help="By default one for each CPU.")]

Images = Annotated[list[Path] | None, typer.Option("--image", help="Picture, may be repeated.")]
TowerPrecision = Annotated[
    str | None, typer.Option("--vision", help="Tower, float32 or int8; by default the bundle's default.")
]
EmbedsFiles = Annotated[
    list[Path] | None,
    typer.Option("--embeds", help="Picture as `encode` wrote it, after all --image; may be repeated."),
]
SystemPrompt = Annotated[
    str | None, typer.Option("-sys", "--system-prompt", help="What to tell the model before the question.")
]

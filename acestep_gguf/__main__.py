"""``python -m acestep_gguf``: the command line, also where its script is not on the path."""

from acestep_gguf.cli import main

main()

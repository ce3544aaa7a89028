"""``python -m acestep_gguf.cli``."""

from acestep_gguf.cli import main

main()

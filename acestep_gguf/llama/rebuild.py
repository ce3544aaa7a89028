"""How llama.cpp is installed with a backend that it was built without."""

from importlib.metadata import version


def rebuild_command(flag: str) -> str:
    """The command that installs llama-cpp-python anew, built with a flag for CMake."""
    release = version("llama-cpp-python")
    return f'CMAKE_ARGS="{flag}" pip install --force-reinstall --no-cache-dir llama-cpp-python=={release}'

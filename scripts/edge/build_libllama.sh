#!/usr/bin/env bash
# llama.cpp's libraries, built once for every kind of CPU, and its bindings without a copy of their own.
#
#     scripts/edge/build_libllama.sh FOLDER [CMAKE OPTION…]
#
# FOLDER is what LLAMA_CPP_LIB_PATH names from then on, in any environment and on any board of this architecture;
# docs/edge.md has an example. Needs a C++ compiler, cmake, and a Python with pip (python3, or what PYTHON names). A
# build that was stopped goes on in FOLDER.build.
set -euo pipefail
folder=$(realpath -m "${1:?which folder? Set LLAMA_CPP_LIB_PATH for make libllama}")
shift
python=${PYTHON:-python3}
constraints=$(dirname "$0")/../../constraints.txt
release=$(sed -n 's/^llama-cpp-python==//p' "$constraints")

if [ -e "$folder" ]; then
    echo "$folder is there already: remove it, or name another folder." >&2
    exit 1
fi
if ! command -v cmake >/dev/null; then
    echo "cmake is needed: apt-get install cmake, or pip install cmake." >&2
    exit 1
fi

# The structures of the bindings are those of the llama.cpp in their source package, and of no other.
build=$folder.build
source=$build/llama_cpp_python-$release
mkdir -p "$build"
if [ ! -d "$source" ]; then
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python --dest "$build" "llama-cpp-python==$release"
    mkdir -p "$build/unpacked"
    tar --extract --directory "$build/unpacked" --file "$source.tar.gz"
    mv "$build/unpacked/${source##*/}" "$source"
fi

# docker/Dockerfile has the same. Programs go where libraries go since backends count as programs.
cmake -S "$source/vendor/llama.cpp" -B "$build/objects" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DGGML_NATIVE=OFF -DGGML_BACKEND_DL=ON -DGGML_CPU_ALL_VARIANTS=ON -DGGML_RPC=ON \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF \
    -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
    -DCMAKE_INSTALL_PREFIX="$build/installed" -DCMAKE_INSTALL_LIBDIR=lib -DCMAKE_INSTALL_BINDIR=lib \
    "-DCMAKE_INSTALL_RPATH=\$ORIGIN" "$@"
cmake --build "$build/objects" --parallel "$(nproc)"
cmake --install "$build/objects" --strip
rm -rf "$build/installed/lib/cmake" "$build/installed/lib/pkgconfig"

# Not cached: pip would take this wheel wherever somebody wants one with libraries, and the other way round.
CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" \
    "$python" -m pip wheel --quiet --no-cache-dir --no-deps --wheel-dir "$build/installed/lib" "$source"

mv "$build/installed/lib" "$folder"
rm -rf "$build"
echo "export LLAMA_CPP_LIB_PATH=$folder"

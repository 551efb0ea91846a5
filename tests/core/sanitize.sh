#!/bin/sh
# Builds the core with the address and undefined-behaviour sanitizers and runs its tests against that build.
# Usage: sh tests/core/sanitize.sh BIN, where BIN holds python, cmake and ninja (make sanitize passes .venv/bin).
set -eu
bin=$(cd "$1" && pwd)
PATH="$bin:$PATH"
cmake -S . -B build-sanitize -G Ninja -DPYNAS_SANITIZE=ON -DPython_EXECUTABLE="$bin/python" >/dev/null
cmake --build build-sanitize --target _core
# Python links neither library itself: the sanitizer must come first, and must find the C++ library's exceptions.
# Leaks are not looked for: the interpreter never frees all it has at exit.
LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)" \
    ASAN_OPTIONS=detect_leaks=0 PYNAS_CORE=build-sanitize/pynas_core python -m pytest tests/core -p no:cacheprovider -n 2

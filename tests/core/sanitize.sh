#!/bin/sh
# Builds the core and the operators' CPU kernels with the address and undefined-behaviour sanitizers and runs their tests
# against that build.
# Usage: sh tests/core/sanitize.sh BIN, where BIN holds python, cmake and ninja (make sanitize passes .venv/bin).
set -eu
bin=$(cd "$1" && pwd)
PATH="$bin:$PATH"
# Kernels for AVX-512 only where they can run: each set of kernels takes half a minute to compile.
if grep -qw avx512dq /proc/cpuinfo 2>/dev/null; then avx512=ON; else avx512=OFF; fi
cmake -S . -B build-sanitize -G Ninja -DPYNAS_SANITIZE=ON -DPYNAS_CUDA=OFF -DPYNAS_AVX512=$avx512 \
    -DPython_EXECUTABLE="$bin/python" >/dev/null
cmake --build build-sanitize --target _core pynas_ops

# Python links neither library itself: the sanitizer must come first, and must find the C++ library's exceptions.
# Leaks are not looked for: the interpreter never frees all it has at exit. pytest leaves the processes' own stderr alone,
# or a report would be lost with the process that dies of it.
sanitized() {
    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libstdc++.so.6)" \
        ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYNAS_CORE=build-sanitize/pynas_core \
        PYNAS_OPS_LIBRARY="$PWD/build-sanitize/pynas_core/libpynas_ops.so" OMP_NUM_THREADS=1 \
        python -m pytest -p no:cacheprovider --capture=sys -n 2 "$@"
}
sanitized tests/core

# The operators' tests with the narrowest vectors and the widest that run here, but for those that would only test others under the sanitizer, at
# length: torch's compiler and its checks of operators, processes of several ranks, new interpreters.
left_out="compile or opcheck or torchs_checks or torchs_rules or imported or importing or instruction_set"
left_out="$left_out or two_ranks or split_batch or over_mpi or data_parallelism or test_library or test_tiles or test_mbconv"
left_out="$left_out or test_fuse or emulated"
widest=
if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then widest=avx2; fi
if [ $avx512 = ON ]; then widest=avx512; fi
for set in baseline $widest; do
    echo "PYNAS_INSTRUCTION_SET=$set"
    PYNAS_INSTRUCTION_SET=$set sanitized tests/ops -k "not ($left_out)"
done

# The GPU's kernels, emulated on the CPU: what they read and write of tensors and of shared memory. float16's (dtype2) are
# bfloat16's but for how a number is read.
PYNAS_TILES_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g1" sanitized \
    tests/ops/test_tiles.py tests/ops/test_gpu_kernels.py -k "not cuda and not dtype2 and (emulated or test_tiles)"

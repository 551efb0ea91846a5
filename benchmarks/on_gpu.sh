#!/usr/bin/env bash
# Everything that wants a GPU, in one run: build, tests, compute-sanitizer on small shapes, benchmark. Its logs and
# results go to the folder given.
#
#     benchmarks/on_gpu.sh OUT
#
# Takes the python on the path, with torch for CUDA, cmake, ninja, pybind11 and pytest in it, and nvcc. Each part runs
# whether or not those before it failed; the exit status says whether all were well.
set -u
out=$(mkdir -p "${1:?benchmarks/on_gpu.sh OUT}" && cd "$1" && pwd) && cd "$(dirname "$0")/.." || exit 2
bad=0

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    local status=$?
    echo "$name: exit $status"
    tail -n 3 "$out/$name.log" | sed 's/^/    /'
    [ $status = 0 ] || bad=1
}

nvidia-smi >"$out/gpu.txt" 2>&1
part build 600 env PYNAS_WERROR=ON python -m pip install -q --no-build-isolation --no-deps -e .
part tests 600 python -m pytest -q -m gpu tests/ops
# The steps alone, in float32 and bfloat16: these take a hundred times as long.
few="(test_depthwise or test_products) and cuda and (dtype1 or dtype0)"
for tool in memcheck racecheck initcheck; do
    part "$tool" 900 compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
        python -m pytest -q -x -m gpu tests/ops/test_tiles.py -k "$few"
done
part bench 900 python benchmarks/bench_mbconv.py --json "$out/mbconv.json"
exit $bad

#!/usr/bin/env bash
# What wants a GPU: build, tests, benchmark, compute-sanitizer on small shapes. Logs and results go to the folder given.
#
#     benchmarks/on_gpu.sh OUT [PART...]     all parts, or: build tests blocks depthwise split-attention fbnetv3-g
#                                            memcheck racecheck initcheck
#
# Takes the python on the path, with torch for CUDA, what pyproject.toml names beside it, cmake, ninja, pybind11, pytest
# and hypothesis in it, and nvcc. Each part ends within ten minutes and runs whether or not those before it failed; the
# exit status says whether all were well. The benchmark writes each row as it comes.
set -u
out=$(mkdir -p "${1:?benchmarks/on_gpu.sh OUT [PART...]}" && cd "$1" && pwd) && cd "$(dirname "$0")/.." || exit 2
shift
python=$(command -v python || command -v python3) || { echo "on_gpu.sh: no python on the path" >&2; exit 2; }
all="build tests blocks depthwise split-attention fbnetv3-g memcheck racecheck initcheck"
for name in "$@"; do
    case " $all " in *" $name "*) ;; *) echo "on_gpu.sh: no part $name; allowed: $all" >&2 && exit 2 ;; esac
done
bad=0

part() { # NAME COMMAND...
    local name=$1
    shift
    timeout 590 "$@" >"$out/$name.log" 2>&1
    local status=$?
    echo "$name: exit $status"
    tail -n 3 "$out/$name.log" | sed 's/^/    /'
    [ $status = 0 ] || bad=1
    return $status
}

# A warning of another compiler, or registers that it spills, are told and do not end the run.
build() {
    local install=("$python" -m pip install -q --no-build-isolation --no-deps -e .)
    export PYNAS_CUDA=ON
    part build-strict env PYNAS_WERROR=ON "${install[@]}" || part build "${install[@]}"
    part kernels "$python" -c 'import torch, pynas.ops; raise SystemExit(not torch.ops.pynas.has_cuda())'
}

nvidia-smi >"$out/gpu.txt" 2>&1
for name in ${*:-$all}; do
    case $name in
    build) build ;;
    tests) part tests "$python" -m pytest -q -m gpu --continue-on-collection-errors tests/ops ;;
    *check)
        # The steps alone, in float32 and bfloat16: these take a hundred times as long. Without torch's own pool of
        # memory, in which nothing is out of bounds.
        part "$name" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
            compute-sanitizer --tool "$name" --error-exitcode 9 --target-processes all \
            "$python" -m pytest -q -x -m gpu tests/ops/test_tiles.py \
            -k "(test_depthwise or test_products) and cuda and not dtype2 and not padding"
        ;;
    *) part "$name" "$python" benchmarks/bench_mbconv.py --only "$name" --json "$out/mbconv-$name.json" ;;
    esac
done
exit $bad

#!/usr/bin/env bash
# Builds graft and trains configs/quickstart.toml. As root on Debian or Ubuntu it installs what is missing;
# otherwise it says what to install and stops with 3. Arguments go to `graft train`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/packages.sh

build=${GRAFT_BUILD_DIR:-build}

packages_install build bench
require_cmake
choose_build_tools

options=()
device=()
capability=""
if capability=$(gpu_compute_capability) && nvcc=$(find_nvcc); then
  device=(--device cuda)
  if [[ ! -e $build/CMakeCache.txt ]]; then
    options+=(-DGRAFT_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc" "-DCMAKE_CUDA_ARCHITECTURES=$(cuda_architecture "$capability")")
  fi
  say "GPU of compute capability $capability: building with CUDA"
elif [[ -n $capability ]]; then
  say "a GPU, but no nvcc (module load cuda, or install the CUDA toolkit): building for the CPU"
else
  say "no GPU found: building for the CPU"
fi

# What an earlier build was configured with stays.
if [[ ! -e $build/CMakeCache.txt ]]; then
  if ((${#device[@]} == 0)); then options+=(-DGRAFT_CUDA=OFF); fi
  options+=(-DGRAFT_TESTS=OFF)
  say "configuring $build/"
fi
read -ra more <<< "${GRAFT_CMAKE_OPTIONS:-}"
quietly cmake -S . -B "$build" "${options[@]}" "${more[@]}" || exit 3

say "building $build/graft on $CMAKE_BUILD_PARALLEL_LEVEL cores"
quietly cmake --build "$build" --target graft

if ((${#device[@]} != 0)) && [[ ! -e $build/libgraft_cuda.so ]]; then
  say "$build/ was configured without CUDA; -DGRAFT_CUDA=ON adds it"
  device=()
fi
say "$build/graft train configs/quickstart.toml ${device[*]} $*"
exec "$build/graft" train configs/quickstart.toml "${device[@]}" "$@"

#!/usr/bin/env bash
# Configures, builds and runs all tests; CUDA code is compiled wherever nvcc is found, and its tests are
# skipped, saying so, where there is no GPU. Arguments go to ctest: scripts/test.sh -L golden
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/packages.sh

build=${GRAFT_BUILD_DIR:-build}
groups=(build bench test)
if [[ ${CI:-false} == true ]]; then groups+=(style); fi
packages_install "${groups[@]}"
require_cmake
choose_build_tools

options=(-DGRAFT_TESTS=ON)
if nvcc=$(find_nvcc); then
  options+=(-DGRAFT_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc")
  if ! grep -qs '^CMAKE_CUDA_ARCHITECTURES:' "$build/CMakeCache.txt" && capability=$(gpu_compute_capability); then
    options+=("-DCMAKE_CUDA_ARCHITECTURES=$(cuda_architecture "$capability")")
  fi
else
  options+=(-DGRAFT_CUDA=OFF)
fi
read -ra more <<< "${GRAFT_CMAKE_OPTIONS:-}"

say "configuring $build/"
quietly cmake -S . -B "$build" "${options[@]}" "${more[@]}" || exit 3
say "building on $CMAKE_BUILD_PARALLEL_LEVEL cores"
cmake --build "$build" < /dev/null

say "testing"
junit=$(mktemp)
trap 'rm -f "$junit"' EXIT
status=0
# Test programs use all cores each, so two at a time are enough to hide start-up.
ctest --test-dir "$build" --output-on-failure --no-tests=error -j 2 --output-junit "$junit" "$@" || status=$?

# The same in one plain line, read from ctest's own record.
count() { sed -n "s/.*[[:space:]]$1=\"\([0-9]*\)\".*/\1/p" "$junit" | head -n 1; }
tests=$(count tests) failed=$(count failures) skipped=$(count skipped) disabled=$(count disabled)
skipped=$((${skipped:-0} + ${disabled:-0}))
echo "$((${tests:-0} - ${failed:-0} - skipped)) passed, ${failed:-0} failed, $skipped skipped"
exit "$status"

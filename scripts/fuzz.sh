#!/usr/bin/env bash
# Fuzzes the two parsers that read files from elsewhere: scripts/fuzz.sh [seconds for each, default 300]
#
# Builds only the parsers, with clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, in
# ${GRAFT_FUZZ_DIR:-build-fuzz}. Inputs that reached something new are kept there, in corpus/<target>, and are the start of
# the next run; what crashes lies in findings/ and, once mended, belongs into tests/fuzz/corpus.
# GRAFT_FUZZ_CXX names the compiler (clang++-16, or the newest clang++ there is).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/packages.sh

seconds=${1:-300}
build=${GRAFT_FUZZ_DIR:-build-fuzz}
if ! [[ $seconds =~ ^[0-9]+$ ]]; then
  echo "graft: error: $0: got \"$seconds\", expected a number of seconds" >&2
  exit 2
fi
compiler=${GRAFT_FUZZ_CXX:-$(command -v clang++-16 || command -v clang++ || true)}
probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' > "$probe/probe.cpp"
if [[ -z $compiler ]] || ! "$compiler" -fsanitize=fuzzer,address "$probe/probe.cpp" -o "$probe/probe" 2> /dev/null; then
  echo "graft: error: no clang++ with libFuzzer; Debian, Ubuntu: clang-16 and libclang-rt-16-dev" >&2
  exit 3
fi

choose_build_tools
say "building the fuzz targets in $build/"
read -ra more <<< "${GRAFT_CMAKE_OPTIONS:-}"
quietly cmake -S . -B "$build" "${more[@]}" "-DCMAKE_CXX_COMPILER=$compiler" -DGRAFT_CUDA=OFF -DGRAFT_TESTS=OFF -DGRAFT_BENCH=OFF \
  -DGRAFT_FUZZ=ON
quietly cmake --build "$build" --target graft_fuzz

status=0
for target in config safetensors; do
  say "fuzzing $target for $seconds s"
  mkdir -p "$build/corpus/$target" "$build/findings"
  # Inputs longer than a configuration may be are few and slow; those of the seeds are kept.
  "$build/${target}_fuzz" "$build/corpus/$target" "tests/fuzz/corpus/$target" "-dict=tests/fuzz/$target.dict" \
    "-max_total_time=$seconds" -max_len=33000 -timeout=5 -rss_limit_mb=2048 -print_final_stats=1 \
    "-artifact_prefix=$build/findings/$target-" > "$build/$target.log" 2>&1 || status=1
  grep -E '^stat::(number_of_executed_units|average_exec_per_sec|peak_rss_mb)|^SUMMARY|^property|Test unit written' \
    "$build/$target.log" || true
done
exit "$status"

# shellcheck shell=bash
# What graft needs to be built, and how to get it. Sourced by the other scripts.
#
#   packages_check GROUP...   fills PACKAGES_MISSING with lines of the table that are not there
#   packages_install GROUP... installs them where that can be done, else prints what to install; then fails with 3
#
# Groups: build, test, bench, style. The scripts also read
#   GRAFT_BUILD_DIR      the build folder (build)
#   GRAFT_CMAKE_OPTIONS  more options for CMake, separated by spaces

# group | program or header or library to look for | name | Debian, Ubuntu | Spack | module
readonly PACKAGES_TABLE='
build|program:cmake|CMake >= 3.24|cmake|cmake|CMake
build|program:g++ clang++ c++|C++20 compiler (g++ >= 12 or clang >= 16)|g++|gcc|GCC
build|program:ninja make gmake|Ninja or make|ninja-build|ninja|Ninja
build|header:fmt/format.h|fmt|libfmt-dev|fmt|fmt
build|header:toml++/toml.h|toml++|libtomlplusplus-dev|tomlplusplus|tomlplusplus
build|header:CLI/CLI.hpp|CLI11|libcli11-dev|cli11|CLI11
build|header:nlohmann/json.hpp|JSON for Modern C++|nlohmann-json3-dev|nlohmann-json|nlohmann_json
build|header:xxhash.h|xxHash|libxxhash-dev|xxhash|xxHash
build|library:openblas|OpenBLAS|libopenblas-dev|openblas|OpenBLAS
bench|header:benchmark/benchmark.h|Google Benchmark|libbenchmark-dev|benchmark|Google-Benchmark
test|header:doctest/doctest.h|doctest|doctest-dev|doctest|doctest
style|program:ccache|ccache|ccache|ccache|ccache
style|program:clang-format-16|clang-format 16|clang-format-16|llvm@16|Clang
style|program:clang-tidy-16|clang-tidy 16|clang-tidy-16|llvm@16|Clang
'

say() { printf '==> %s\n' "$*"; }

# Prefixes that hold include/ and lib/: the system's, and what Spack, modules and users announce.
packages_prefixes() {
  printf '%s\n' /usr /usr/local
  printf '%s' "${CMAKE_PREFIX_PATH:-}:" | tr ':;' '\n\n'
  compgen -v | grep -E '_ROOT$' | while read -r name; do printf '%s\n' "${!name}"; done
}

packages_has_header() {
  local folder
  while read -r folder; do
    [[ -n $folder && -e $folder/$1 ]] && return 0
  done < <(packages_prefixes | sed 's:$:/include:'
           printf '%s' "${CPATH:-}:${C_INCLUDE_PATH:-}:${CPLUS_INCLUDE_PATH:-}:" | tr ':' '\n')
  return 1
}

packages_has_library() {
  local folder
  while read -r folder; do
    [[ -n $folder ]] && compgen -G "$folder/lib$1.*" > /dev/null && return 0
  done < <(packages_prefixes | sed 's:$:/lib:'; packages_prefixes | sed 's:$:/lib64:'
           ls -d /usr/lib/*-linux-gnu 2> /dev/null
           printf '%s' "${LIBRARY_PATH:-}:" | tr ':' '\n')
  return 1
}

# Whether CMake downloads missing libraries by itself: asked for now, or when the build folder was configured.
packages_are_fetched() {
  [[ ${GRAFT_CMAKE_OPTIONS:-} == *GRAFT_FETCH_DEPS=ON* || ${GRAFT_CMAKE_OPTIONS:-} == *GRAFT_DEPS_MIRROR=* ]] ||
    grep -qsE '^GRAFT_FETCH_DEPS:BOOL=ON|^GRAFT_DEPS_MIRROR:[A-Z]*=.' "${GRAFT_BUILD_DIR:-build}/CMakeCache.txt"
}

packages_has() {
  local kind=${1%%:*} what=${1#*:} name
  if [[ $kind != program ]] && packages_are_fetched; then return 0; fi
  case $kind in
    program)
      for name in $what; do command -v "$name" > /dev/null && return 0; done
      return 1 ;;
    header) packages_has_header "$what" ;;
    library) packages_has_library "$what" ;;
  esac
}

packages_check() {
  local line group what
  PACKAGES_MISSING=()
  while IFS= read -r line; do
    [[ -n $line ]] || continue
    group=${line%%|*}
    [[ " $* " == *" $group "* ]] || continue
    IFS='|' read -r _ what _ <<< "$line"
    packages_has "$what" || PACKAGES_MISSING+=("$line")
  done <<< "$PACKAGES_TABLE"
}

# Field $1 (from 1) of every missing line, joined by $2.
packages_field() {
  local line
  for line in "${PACKAGES_MISSING[@]}"; do cut -d'|' -f"$1" <<< "$line"; done | sort -u | paste -sd"${2:- }"
}

packages_install() {
  packages_check "$@"
  if ((${#PACKAGES_MISSING[@]} == 0)); then return 0; fi

  if [[ $(id -u) == 0 ]] && command -v apt-get > /dev/null; then
    local names
    read -ra names <<< "$(packages_field 4)"
    say "installing ${names[*]}"
    # A fresh machine has no package lists, an old one has stale ones: fetch them once if the first try fails.
    local install=(apt-get install -y -q --no-install-recommends "${names[@]}")
    export DEBIAN_FRONTEND=noninteractive
    local log
    log=$(mktemp)
    if ! "${install[@]}" < /dev/null > "$log" 2>&1; then
      { apt-get update -q && "${install[@]}"; } < /dev/null > "$log" 2>&1 || { tail -n 20 "$log" >&2; rm -f "$log"; return 3; }
    fi
    rm -f "$log"
    packages_check "$@"
    if ((${#PACKAGES_MISSING[@]} == 0)); then return 0; fi
  fi

  {
    echo "graft: error: not found: $(packages_field 3 , | sed 's/,/, /g')"
    echo "  Debian, Ubuntu:  sudo apt-get install $(packages_field 4)"
    echo "  Spack:           spack install $(packages_field 5) && spack load $(packages_field 5)"
    echo "  Modules:         module load $(packages_field 6)    (sites differ: module spider <name>)"
    echo "  Libraries alone can be downloaded too: GRAFT_CMAKE_OPTIONS=-DGRAFT_FETCH_DEPS=ON $0"
  } >&2
  return 3
}

# CMake must be new enough for the build files; the compiler is checked by CMake.
require_cmake() {
  local version
  version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9.]*\).*/\1/p')
  if [[ $(printf '%s\n' 3.24 "$version" | sort -V | head -n 1) != 3.24 ]]; then
    echo "graft: error: CMake $version is too old, 3.24 or newer is needed; python3 -m pip install cmake brings one" >&2
    return 3
  fi
}

find_nvcc() {
  local candidate
  for candidate in "${CUDACXX:-}" "$(command -v nvcc || true)" "${CUDA_HOME:+$CUDA_HOME/bin/nvcc}" \
                   "${CUDA_PATH:+$CUDA_PATH/bin/nvcc}" /usr/local/cuda/bin/nvcc; do
    if [[ -n $candidate && -x $candidate ]]; then printf '%s\n' "$candidate"; return 0; fi
  done
  return 1
}

# "9.0" of the first GPU; fails where there is none.
gpu_compute_capability() {
  command -v nvidia-smi > /dev/null || return 1
  local line
  line=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -n 1) || return 1
  [[ $line =~ ^[0-9]+\.[0-9]+$ ]] && printf '%s\n' "$line"
}

# The CMake architecture of a compute capability: 9.0 -> 90a-real, 8.0 -> 80-real.
cuda_architecture() {
  local number=${1/./}
  if ((number == 90)); then echo 90a-real; else echo "$number-real"; fi
}

# Uses Ninja and ccache where they are there.
choose_build_tools() {
  if command -v ninja > /dev/null; then export CMAKE_GENERATOR=${CMAKE_GENERATOR:-Ninja}; fi
  if command -v ccache > /dev/null; then
    export CMAKE_CXX_COMPILER_LAUNCHER=${CMAKE_CXX_COMPILER_LAUNCHER:-ccache}
    export CMAKE_CUDA_COMPILER_LAUNCHER=${CMAKE_CUDA_COMPILER_LAUNCHER:-ccache}
    export CCACHE_NOHASHDIR=${CCACHE_NOHASHDIR:-1}
  fi
  export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
}

# Runs a command quietly; on failure prints the end of what it said.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" < /dev/null > "$log" 2>&1 || status=$?
  if ((status != 0)); then tail -n 60 "$log" >&2; fi
  rm -f "$log"
  return "$status"
}

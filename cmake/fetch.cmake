# Pinned versions for GRAFT_FETCH_DEPS. GRAFT_DEPS_MIRROR may name a folder that holds the archives
# under the names below, for machines without internet.

include(FetchContent)
include(ExternalProject)
if(GRAFT_DEPS_MIRROR)
  set(GRAFT_FETCH_DEPS ON)
endif()

# name | file in the mirror | where it comes from | SHA-256
set(graft_archive_fmt
    "fmt-10.2.1.tar.gz|https://github.com/fmtlib/fmt/archive/refs/tags/10.2.1.tar.gz|1250e4cc58bf06ee631567523f48848dc4596133e163f02615c97f78bab6c811")
set(graft_archive_toml++
    "tomlplusplus-3.4.0.tar.gz|https://github.com/marzer/tomlplusplus/archive/v3.4.0.tar.gz|8517f65938a4faae9ccf8ebb36631a38c1cadfb5efa85d9a72e15b9e97d25155")
set(graft_archive_CLI11
    "CLI11-2.4.2.tar.gz|https://github.com/CLIUtils/CLI11/archive/v2.4.2.tar.gz|f2d893a65c3b1324c50d4e682c0cdc021dd0477ae2c048544f39eed6654b699a")
set(graft_archive_json
    "json-3.11.3.tar.gz|https://github.com/nlohmann/json/archive/v3.11.3.tar.gz|0d8ef5af7f9794e3263480193c491549b2ba6cc74bb018906202ada498a79406")
set(graft_archive_xxHash
    "xxHash-0.8.2.tar.gz|https://github.com/Cyan4973/xxHash/archive/v0.8.2.tar.gz|baee0c6afd4f03165de7a4e67988d16f0f2b257b51d0e3cb91909302a26a79c4")
set(graft_archive_doctest
    "doctest-2.4.11.tar.gz|https://github.com/doctest/doctest/archive/refs/tags/v2.4.11.tar.gz|632ed2c05a7f53fa961381497bf8069093f0d6628c5f26286161fbd32a560186")
set(graft_archive_benchmark
    "benchmark-1.8.4.tar.gz|https://github.com/google/benchmark/archive/refs/tags/v1.8.4.tar.gz|3e7059b6b11fb1bbe28e33e02519398ca94c1818874ebed18e504dc6f709be45")
set(graft_archive_OpenBLAS
    "OpenBLAS-0.3.26.tar.gz|https://github.com/OpenMathLib/OpenBLAS/archive/v0.3.26.tar.gz|4e6e4f5cb14c209262e33e6816d70221a2fe49eb69eaf0a06f065598ac602c68")

set(graft_fetch_problems "")

# Sets <url> and <hash> of an archive. In mirror mode a missing file leaves <url> empty and adds a line
# to graft_fetch_problems.
macro(graft_archive name url hash)
  string(REPLACE "|" ";" archive "${graft_archive_${name}}")
  list(POP_FRONT archive archive_file ${url} ${hash})
  if(GRAFT_DEPS_MIRROR)
    if(EXISTS "${GRAFT_DEPS_MIRROR}/${archive_file}")
      set(${url} "${GRAFT_DEPS_MIRROR}/${archive_file}")
    else()
      string(APPEND graft_fetch_problems "   ${GRAFT_DEPS_MIRROR}/${archive_file}, which is ${${url}}\n")
      set(${url} "")
    endif()
  endif()
endmacro()

# Unpacks an archive without building anything and sets <folder>; empty if it cannot be had.
macro(graft_fetch name folder)
  set(${folder} "")
  graft_archive(${name} url hash)
  if(url)
    string(MAKE_C_IDENTIFIER "graft_${name}" content)
    string(TOLOWER "${content}" content)
    message(STATUS "graft: fetching ${name} from ${url}")
    # No such subfolder: the archive's own build files stay out of ours.
    FetchContent_Declare(${content} URL "${url}" URL_HASH "SHA256=${hash}" SOURCE_SUBDIR none
                         DOWNLOAD_EXTRACT_TIMESTAMP ON)
    FetchContent_MakeAvailable(${content})
    set(${folder} "${${content}_SOURCE_DIR}")
  endif()
endmacro()

# Adds benchmark::benchmark, static.
macro(graft_fetch_benchmark)
  graft_archive(benchmark url hash)
  if(url)
    message(STATUS "graft: fetching benchmark from ${url}")
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_GTEST_TESTS OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    set(BENCHMARK_ENABLE_WERROR OFF)
    set(BENCHMARK_INSTALL_DOCS OFF)
    set(BUILD_SHARED_LIBS OFF)
    set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)
    FetchContent_Declare(graft_benchmark_source URL "${url}" URL_HASH "SHA256=${hash}" DOWNLOAD_EXTRACT_TIMESTAMP ON)
    FetchContent_MakeAvailable(graft_benchmark_source)
    target_link_libraries(graft_benchmark INTERFACE benchmark::benchmark)
    list(APPEND graft_found "benchmark: ${graft_benchmark_source_SOURCE_DIR}")
  endif()
endmacro()

# Adds graft_fetched_openblas: static, LAPACK translated to C, so that no Fortran compiler is needed.
# Built with graft; takes minutes the first time.
macro(graft_fetch_openblas)
  graft_archive(OpenBLAS url hash)
  find_program(GRAFT_MAKE NAMES gmake make)
  mark_as_advanced(GRAFT_MAKE)
  if(url AND NOT GRAFT_MAKE)
    string(APPEND graft_fetch_problems "   OpenBLAS, which needs make to be built\n")
  elseif(url)
    message(STATUS "graft: OpenBLAS will be built from ${url}")
    find_program(GRAFT_C_COMPILER NAMES gcc clang cc REQUIRED)
    mark_as_advanced(GRAFT_C_COMPILER)
    set(prefix "${PROJECT_BINARY_DIR}/openblas")
    set(arguments NOFORTRAN=1 NO_LAPACKE=1 NO_SHARED=1 USE_OPENMP=0 NUM_THREADS=256 CC=${GRAFT_C_COMPILER})
    if(NOT GRAFT_NATIVE)
      list(APPEND arguments DYNAMIC_ARCH=1)
    endif()
    ExternalProject_Add(
      graft_openblas_build
      URL "${url}"
      URL_HASH "SHA256=${hash}"
      DOWNLOAD_EXTRACT_TIMESTAMP ON
      BUILD_IN_SOURCE ON
      CONFIGURE_COMMAND ""
      BUILD_COMMAND ${GRAFT_MAKE} ${arguments} libs netlib
      INSTALL_COMMAND ${GRAFT_MAKE} ${arguments} PREFIX=${prefix} install
      BUILD_BYPRODUCTS "${prefix}/lib/libopenblas.a"
      LOG_BUILD ON
      LOG_INSTALL ON)
    file(MAKE_DIRECTORY "${prefix}/include")
    add_library(graft_fetched_openblas INTERFACE)
    add_dependencies(graft_fetched_openblas graft_openblas_build)
    target_include_directories(graft_fetched_openblas SYSTEM INTERFACE "${prefix}/include")
    target_link_libraries(graft_fetched_openblas INTERFACE "${prefix}/lib/libopenblas.a" Threads::Threads m)
  endif()
endmacro()

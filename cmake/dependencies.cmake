# The libraries graft needs. Everything that is missing is reported in one message; with
# GRAFT_FETCH_DEPS it is downloaded instead. Headers and libraries are searched for directly, since the
# CMake files that packages install for them differ too much between distributions.

include(CheckCXXSourceCompiles)
include(fetch)
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

set(graft_missing)  # names, for the message at the end
set(graft_found)    # lines for the summary

# What the message says: what for | Debian and Ubuntu | Spack | module | what builds without it.
set(graft_about_fmt "messages|libfmt-dev|fmt|fmt|nothing builds without it")
set(graft_about_toml++ "configuration files|libtomlplusplus-dev|tomlplusplus|tomlplusplus|nothing builds without it")
set(graft_about_CLI11 "the command line|libcli11-dev|cli11|CLI11|nothing builds without it")
set(graft_about_json "results, checkpoints|nlohmann-json3-dev|nlohmann-json|nlohmann_json|nothing builds without it")
set(graft_about_xxHash "hashes of configurations and files|libxxhash-dev|xxhash|xxHash|nothing builds without it")
set(graft_about_OpenBLAS "CPU matrix products, least squares|libopenblas-dev|openblas|OpenBLAS|nothing builds without it")
set(graft_about_doctest "tests|doctest-dev|doctest|doctest|all but the tests: -DGRAFT_TESTS=OFF")
set(graft_about_benchmark "graft bench|libbenchmark-dev|benchmark|Google-Benchmark|all but graft bench: -DGRAFT_BENCH=OFF")
set(graft_about_NCCL "several GPUs|libnccl-dev|nccl|NCCL|all but several GPUs: -DGRAFT_NCCL=OFF")
set(graft_about_MPI "starting ranks with mpirun|libopenmpi-dev|openmpi|OpenMPI|all but mpirun: -DGRAFT_MPI=OFF")

# Sets <variable> to the folder that holds `header`, looking in <name>_ROOT, CMAKE_PREFIX_PATH, CPATH
# and the system's folders, in that order.
function(graft_find_header variable name header)
  find_path(
    ${variable} "${header}"
    HINTS ${${name}_ROOT} ENV ${name}_ROOT ENV CPATH ENV C_INCLUDE_PATH ENV CPLUS_INCLUDE_PATH
    PATH_SUFFIXES include ${ARGN}
    DOC "Folder with ${header}")
  mark_as_advanced(${variable})
endfunction()

# graft_header_library(name header version archive-include-folder): a library without compiled code.
# Adds it to graft_dependencies, or to the target of that name given as a last argument.
add_library(graft_dependencies INTERFACE)
target_link_libraries(graft_dependencies INTERFACE Threads::Threads ${CMAKE_DL_LIBS})

macro(graft_header_library target name header archive_include)
  string(MAKE_C_IDENTIFIER "GRAFT_${name}_INCLUDE_DIR" variable)
  graft_find_header(${variable} ${name} ${header})
  if(NOT ${variable} AND GRAFT_FETCH_DEPS)
    graft_fetch(${name} fetched)
    if(fetched)
      set(${variable} "${fetched}${archive_include}")
    endif()
  endif()
  if(${variable})
    target_include_directories(${target} SYSTEM INTERFACE "${${variable}}")
    list(APPEND graft_found "${name}: ${${variable}}")
  else()
    list(APPEND graft_missing ${name})
  endif()
endmacro()

graft_header_library(graft_dependencies toml++ toml++/toml.h /include)
graft_header_library(graft_dependencies CLI11 CLI/CLI.hpp /include)
graft_header_library(graft_dependencies json nlohmann/json.hpp /include)
graft_header_library(graft_dependencies xxHash xxhash.h "")
target_compile_definitions(graft_dependencies INTERFACE TOML_HEADER_ONLY=1 "XXH_INLINE_ALL=")

if(GRAFT_TESTS)
  add_library(graft_doctest INTERFACE)
  graft_header_library(graft_doctest doctest doctest/doctest.h "")
endif()

# fmt: its headers, and its compiled half built here (see fmt_library.cpp), so that the program needs no
# libfmt.so. A version that this does not fit is used header-only, which compiles slowly.
add_library(graft_fmt_headers INTERFACE)
graft_header_library(graft_fmt_headers fmt fmt/format.h /include)
if(GRAFT_fmt_INCLUDE_DIR)
  if(NOT DEFINED GRAFT_FMT_COMPILES)
    try_compile(
      GRAFT_FMT_COMPILES "${PROJECT_BINARY_DIR}/fmt_check"
      SOURCES "${PROJECT_SOURCE_DIR}/cmake/fmt_check.cpp" "${PROJECT_SOURCE_DIR}/cmake/fmt_library.cpp"
      CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${GRAFT_fmt_INCLUDE_DIR}"
      CXX_STANDARD 20
      CXX_STANDARD_REQUIRED ON)
  endif()
  if(GRAFT_FMT_COMPILES)
    add_library(graft_fmt STATIC "${PROJECT_SOURCE_DIR}/cmake/fmt_library.cpp")
    target_link_libraries(graft_fmt PUBLIC graft_fmt_headers)
    target_compile_features(graft_fmt PRIVATE cxx_std_20)
    set_target_properties(graft_fmt PROPERTIES POSITION_INDEPENDENT_CODE ON)
  else()
    message(STATUS "graft: this version of fmt is used header-only; compiling takes longer")
    add_library(graft_fmt INTERFACE)
    target_link_libraries(graft_fmt INTERFACE graft_fmt_headers)
    target_compile_definitions(graft_fmt INTERFACE FMT_HEADER_ONLY=1)
  endif()
  target_link_libraries(graft_dependencies INTERFACE graft_fmt)
endif()

# OpenBLAS with LAPACK: in the same library, or beside it where a distribution splits them.
graft_find_header(GRAFT_OPENBLAS_INCLUDE_DIR OpenBLAS cblas.h openblas include/openblas openblas-pthread)
find_library(
  GRAFT_OPENBLAS_LIBRARY
  NAMES openblas openblasp openblas_pthreads
  HINTS ${OpenBLAS_ROOT} ENV OpenBLAS_ROOT ENV LIBRARY_PATH "${GRAFT_OPENBLAS_INCLUDE_DIR}/.."
  PATH_SUFFIXES lib lib64 openblas openblas-pthread
  DOC "OpenBLAS")
find_library(
  GRAFT_LAPACK_LIBRARY
  NAMES lapack
  HINTS ${OpenBLAS_ROOT} ENV OpenBLAS_ROOT ENV LIBRARY_PATH
  PATH_SUFFIXES lib lib64
  DOC "LAPACK, where OpenBLAS was built without it")
mark_as_advanced(GRAFT_OPENBLAS_INCLUDE_DIR GRAFT_OPENBLAS_LIBRARY GRAFT_LAPACK_LIBRARY)
if(GRAFT_OPENBLAS_INCLUDE_DIR AND GRAFT_OPENBLAS_LIBRARY)
  set(probe "
    #include <cblas.h>
    extern \"C\" void dpotrf_(const char*, const int*, double*, const int*, int*);
    int main(int argc, char**) {
      double a[1] = {4}, c[1] = {0};
      int n = 1, info = 0;
      cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, 1, 1, 1, 1, a, 1, a, 1, 0, c, 1);
      if (argc > 0) dpotrf_(\"L\", &n, a, &n, &info);
      return info;
    }")
  add_library(graft_openblas INTERFACE)
  target_include_directories(graft_openblas SYSTEM INTERFACE "${GRAFT_OPENBLAS_INCLUDE_DIR}")
  set(CMAKE_REQUIRED_INCLUDES "${GRAFT_OPENBLAS_INCLUDE_DIR}")
  set(CMAKE_REQUIRED_LIBRARIES "${GRAFT_OPENBLAS_LIBRARY}" Threads::Threads)
  check_cxx_source_compiles("${probe}" GRAFT_OPENBLAS_HAS_LAPACK)
  if(GRAFT_OPENBLAS_HAS_LAPACK)
    target_link_libraries(graft_openblas INTERFACE "${GRAFT_OPENBLAS_LIBRARY}")
  elseif(GRAFT_LAPACK_LIBRARY)
    set(CMAKE_REQUIRED_LIBRARIES "${GRAFT_LAPACK_LIBRARY}" "${GRAFT_OPENBLAS_LIBRARY}" Threads::Threads)
    check_cxx_source_compiles("${probe}" GRAFT_OPENBLAS_AND_LAPACK)
    if(GRAFT_OPENBLAS_AND_LAPACK)
      target_link_libraries(graft_openblas INTERFACE "${GRAFT_LAPACK_LIBRARY}" "${GRAFT_OPENBLAS_LIBRARY}")
      set(GRAFT_OPENBLAS_HAS_LAPACK TRUE)
    endif()
  endif()
  unset(CMAKE_REQUIRED_INCLUDES)
  unset(CMAKE_REQUIRED_LIBRARIES)
endif()
if(GRAFT_OPENBLAS_HAS_LAPACK)
  target_link_libraries(graft_dependencies INTERFACE graft_openblas)
  list(APPEND graft_found "OpenBLAS: ${GRAFT_OPENBLAS_LIBRARY}")
elseif(GRAFT_FETCH_DEPS)
  graft_fetch_openblas()
  if(TARGET graft_fetched_openblas)
    target_link_libraries(graft_dependencies INTERFACE graft_fetched_openblas)
    list(APPEND graft_found "OpenBLAS: downloaded")
  else()
    list(APPEND graft_missing OpenBLAS)
  endif()
else()
  list(APPEND graft_missing OpenBLAS)
endif()

if(GRAFT_BENCH)
  graft_find_header(GRAFT_BENCHMARK_INCLUDE_DIR benchmark benchmark/benchmark.h)
  find_library(
    GRAFT_BENCHMARK_LIBRARY
    NAMES libbenchmark.a benchmark
    HINTS ${benchmark_ROOT} ENV benchmark_ROOT ENV LIBRARY_PATH "${GRAFT_BENCHMARK_INCLUDE_DIR}/.."
    PATH_SUFFIXES lib lib64
    DOC "Google Benchmark")
  mark_as_advanced(GRAFT_BENCHMARK_LIBRARY)
  add_library(graft_benchmark INTERFACE)
  if(GRAFT_BENCHMARK_INCLUDE_DIR AND GRAFT_BENCHMARK_LIBRARY)
    target_include_directories(graft_benchmark SYSTEM INTERFACE "${GRAFT_BENCHMARK_INCLUDE_DIR}")
    target_link_libraries(graft_benchmark INTERFACE "${GRAFT_BENCHMARK_LIBRARY}" Threads::Threads)
    if(GRAFT_BENCHMARK_LIBRARY MATCHES "\\.a$")
      target_compile_definitions(graft_benchmark INTERFACE BENCHMARK_STATIC_DEFINE)
    endif()
    list(APPEND graft_found "benchmark: ${GRAFT_BENCHMARK_LIBRARY}")
  elseif(GRAFT_FETCH_DEPS)
    graft_fetch_benchmark()
  endif()
  if(NOT GRAFT_BENCHMARK_LIBRARY AND NOT TARGET benchmark::benchmark)
    list(APPEND graft_missing benchmark)
  endif()
endif()

if(GRAFT_CUDA)
  find_package(CUDAToolkit 12.0 REQUIRED)
  if(NOT TARGET CUDA::cublas OR NOT TARGET CUDA::cublasLt)
    message(FATAL_ERROR "graft: the CUDA toolkit in ${CUDAToolkit_LIBRARY_DIR} has no cuBLAS.\n"
                        " Debian: libcublas-dev-<version>   Spack: cuda   module: CUDA\n"
                        " Without it: -DGRAFT_CUDA=OFF builds all but the CUDA backend.")
  endif()
  list(APPEND graft_found "CUDA: ${CUDAToolkit_LIBRARY_DIR}")
endif()

if(GRAFT_NCCL)
  graft_find_header(GRAFT_NCCL_INCLUDE_DIR NCCL nccl.h)
  find_library(GRAFT_NCCL_LIBRARY nccl HINTS ${NCCL_ROOT} ENV NCCL_ROOT ENV LIBRARY_PATH PATH_SUFFIXES lib lib64)
  mark_as_advanced(GRAFT_NCCL_LIBRARY)
  if(GRAFT_NCCL_INCLUDE_DIR AND GRAFT_NCCL_LIBRARY)
    add_library(graft_nccl INTERFACE)
    target_include_directories(graft_nccl SYSTEM INTERFACE "${GRAFT_NCCL_INCLUDE_DIR}")
    target_link_libraries(graft_nccl INTERFACE "${GRAFT_NCCL_LIBRARY}")
    list(APPEND graft_found "NCCL: ${GRAFT_NCCL_LIBRARY}")
  else()
    list(APPEND graft_missing NCCL)
  endif()
endif()

if(GRAFT_MPI)
  find_package(MPI COMPONENTS CXX QUIET)
  if(TARGET MPI::MPI_CXX)
    target_link_libraries(graft_dependencies INTERFACE MPI::MPI_CXX)
    target_compile_definitions(graft_dependencies INTERFACE GRAFT_WITH_MPI=1)
    list(APPEND graft_found "MPI: ${MPI_CXX_LIBRARIES}")
  else()
    list(APPEND graft_missing MPI)
  endif()
endif()

include(report_missing)

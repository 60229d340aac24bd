# graft_flags: how every file of graft is compiled.

include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)

add_library(graft_flags INTERFACE)
target_compile_features(graft_flags INTERFACE cxx_std_20)
target_include_directories(graft_flags INTERFACE "${PROJECT_SOURCE_DIR}")

# Aggregates with defaults are filled by designated initializers, which name what differs.
set(graft_cxx_flags -Wall -Wextra -Wshadow -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees overlapping copies inside std::string::assign that cannot happen (GCC bug 105651).
  list(APPEND graft_cxx_flags -Wno-restrict)
endif()
if(GRAFT_WERROR)
  list(APPEND graft_cxx_flags -Werror)
endif()

# Values never depend on optimisation: no -ffast-math, and a*b+c is two roundings unless the code says
# std::fma. The other two only drop errno and floating-point traps, which nobody reads.
list(APPEND graft_cxx_flags -ffp-contract=off -fno-math-errno -fno-trapping-math)

# Messages name files relative to the source folder, and builds in different folders are the same.
list(APPEND graft_cxx_flags "-fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=")

# A level of the x86-64 psABI rather than -march=native: the flags then say what the program needs, and
# a compiler cache shared by different machines stays correct.
set(graft_cpu "baseline")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(graft_cpu x86-64-v2)
  if(GRAFT_NATIVE)
    set(CMAKE_REQUIRED_FLAGS -march=native)
    check_cxx_source_compiles("
      #if !(defined(__AVX2__) && defined(__FMA__) && defined(__BMI__) && defined(__BMI2__) && defined(__F16C__) && \
            defined(__LZCNT__) && defined(__MOVBE__))
      #error
      #endif
      int main() { return 0; }" GRAFT_CPU_HAS_V3)
    check_cxx_source_compiles("
      #if !(defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512CD__) && defined(__AVX512DQ__) && \
            defined(__AVX512VL__))
      #error
      #endif
      int main() { return 0; }" GRAFT_CPU_HAS_V4)
    unset(CMAKE_REQUIRED_FLAGS)
    if(GRAFT_CPU_HAS_V3 AND GRAFT_CPU_HAS_V4)
      set(graft_cpu x86-64-v4)
    elseif(GRAFT_CPU_HAS_V3)
      set(graft_cpu x86-64-v3)
    endif()
  endif()
  list(APPEND graft_cxx_flags "-march=${graft_cpu}")
  if(graft_cpu STREQUAL x86-64-v4 AND CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    # GCC 12 warns about its own AVX-512 header; xxHash with AVX2 outruns any disk.
    target_compile_definitions(graft_flags INTERFACE XXH_VECTOR=2)
  endif()
elseif(GRAFT_NATIVE)
  check_cxx_compiler_flag(-mcpu=native GRAFT_HAS_MCPU_NATIVE)
  if(GRAFT_HAS_MCPU_NATIVE)
    set(graft_cpu native)
    list(APPEND graft_cxx_flags -mcpu=native)
  endif()
endif()

if(GRAFT_SANITIZE)
  set(sanitize "-fsanitize=${GRAFT_SANITIZE}" -fno-sanitize-recover=all -fno-omit-frame-pointer)
  list(APPEND graft_cxx_flags ${sanitize})
  target_link_options(graft_flags INTERFACE ${sanitize})
endif()

list(TRANSFORM graft_cxx_flags REPLACE "^(.+)$" "$<$<COMPILE_LANGUAGE:CXX>:\\1>" OUTPUT_VARIABLE options)
target_compile_options(graft_flags INTERFACE ${options})

if(GRAFT_CUDA)
  # The standard as a flag: CMake before 3.26 does not know that nvcc has it (which is also why C++'s
  # standard is a compile feature above: CMAKE_CXX_STANDARD would be asked of nvcc too).
  set(graft_cuda_flags -std=c++20 --expt-relaxed-constexpr -lineinfo -Xcompiler=-Wall,-Wextra
                       -Xcompiler=-ffp-contract=off "-Xcompiler=-fmacro-prefix-map=${PROJECT_SOURCE_DIR}/=")
  if(GRAFT_WERROR)
    list(APPEND graft_cuda_flags -Werror=all-warnings)
  endif()
  list(TRANSFORM graft_cuda_flags REPLACE "^(.+)$" "$<$<COMPILE_LANGUAGE:CUDA>:\\1>" OUTPUT_VARIABLE options)
  target_compile_options(graft_flags INTERFACE ${options})
endif()

# The CUDA compiler and toolkit. The architectures must be known before the language is enabled, since
# the compiler check uses them.

if(NOT GRAFT_CUDA)
  if(NOT GRAFT_NVCC)
    message(STATUS "graft: no nvcc found, building without the CUDA backend (-DGRAFT_CUDA=ON asks for it)")
  endif()
  return()
endif()

if(GRAFT_SANITIZE)
  message(FATAL_ERROR "graft: GRAFT_SANITIZE=${GRAFT_SANITIZE} works on the CPU code only; add -DGRAFT_CUDA=OFF")
endif()
if(NOT GRAFT_NVCC AND NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  message(
    FATAL_ERROR
      "graft: GRAFT_CUDA is on, but nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda.\n"
      "  module load cuda   |   spack load cuda   |   -DCMAKE_CUDA_COMPILER=/path/to/nvcc   |   -DGRAFT_CUDA=OFF")
endif()

if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  # 90a rather than 90: the tensor-core instructions of Hopper are in the architecture-specific set.
  set(CMAKE_CUDA_ARCHITECTURES 90a-real CACHE STRING "CUDA architectures, e.g. 80-real;90a-real;100" FORCE)
endif()
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  set(CMAKE_CUDA_COMPILER "${GRAFT_NVCC}")
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.0)
  message(FATAL_ERROR "graft: nvcc ${CMAKE_CUDA_COMPILER_VERSION} is too old, CUDA 12.0 or newer is needed")
endif()

foreach(architecture IN LISTS CMAKE_CUDA_ARCHITECTURES)
  if(architecture MATCHES "^([0-9]+)" AND CMAKE_MATCH_1 LESS 80)
    message(FATAL_ERROR "graft: CMAKE_CUDA_ARCHITECTURES has ${architecture}; the kernels need sm_80 or newer")
  endif()
endforeach()

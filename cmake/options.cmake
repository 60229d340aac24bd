# Options, and what has to be settled before the compilers are looked at.

find_program(
  GRAFT_NVCC nvcc
  HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH ENV CUDA_ROOT /usr/local/cuda
  PATH_SUFFIXES bin
  DOC "The CUDA compiler")
mark_as_advanced(GRAFT_NVCC)
if(GRAFT_NVCC OR CMAKE_CUDA_COMPILER)
  set(graft_cuda_default ON)
else()
  set(graft_cuda_default OFF)
endif()

option(GRAFT_CUDA "Build the CUDA backend, libgraft_cuda.so (default: on where nvcc is found)" ${graft_cuda_default})
option(GRAFT_NCCL "Link NCCL into the CUDA backend, for several GPUs" OFF)
option(GRAFT_MPI "Link MPI, to start ranks with mpirun" OFF)
option(GRAFT_TESTS "Build the tests" ON)
option(GRAFT_BENCH "Build `graft bench`" ON)
option(GRAFT_FUZZ "Add the fuzz targets (clang only): target graft_fuzz" OFF)
option(GRAFT_WERROR "Treat warnings as errors" OFF)
option(GRAFT_NATIVE "Compile CPU kernels for this machine's instruction set; off: any x86-64 since 2009" ON)
option(GRAFT_FETCH_DEPS "Download pinned versions of the libraries that are not installed" OFF)
set(GRAFT_SANITIZE "" CACHE STRING "Sanitizers of the CPU code, as in -fsanitize=: address,undefined or thread")
set(GRAFT_DEPS_MIRROR "" CACHE PATH "A folder of archives for GRAFT_FETCH_DEPS, for machines without internet")

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Release, RelWithDebInfo or Debug" FORCE)
endif()

set(CMAKE_CXX_EXTENSIONS OFF)

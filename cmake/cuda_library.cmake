# libgraft_cuda.so: the CUDA backend, loaded by the program when a GPU is asked for. It is linked
# against none of graft's libraries: their symbols come from the program that loads it.

file(GLOB_RECURSE sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/cuda/*.cu" "${PROJECT_SOURCE_DIR}/cuda/*.cpp")
if(NOT sources)
  return()
endif()

include(CheckLinkerFlag)

add_library(graft_cuda SHARED ${sources})
target_link_libraries(graft_cuda PRIVATE graft_flags graft_fmt CUDA::cublas CUDA::cublasLt Threads::Threads)
target_include_directories(graft_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
set_target_properties(graft_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_SEPARABLE_COMPILATION OFF)
target_link_libraries(graft_cuda PRIVATE CUDA::cudart_static)

# The one function of graft that the library has of its own: hidden, or the loader would take the program's, and the
# library would say of itself whatever the program says.
add_library(graft_cuda_build_info OBJECT "${build_info_file}")
add_dependencies(graft_cuda_build_info graft_git_hash)
target_link_libraries(graft_cuda_build_info PRIVATE graft_flags)
set_target_properties(graft_cuda_build_info PROPERTIES CXX_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
target_sources(graft_cuda PRIVATE $<TARGET_OBJECTS:graft_cuda_build_info>)

# Some distributions' default flags forbid undefined symbols in shared libraries.
check_linker_flag(CXX "-Wl,-z,undefs" GRAFT_LINKER_HAS_UNDEFS)
if(GRAFT_LINKER_HAS_UNDEFS)
  target_link_options(graft_cuda PRIVATE "-Wl,-z,undefs")
endif()

if(GRAFT_NCCL)
  target_link_libraries(graft_cuda PRIVATE graft_nccl)
  target_compile_definitions(graft_cuda PRIVATE GRAFT_WITH_NCCL=1)
endif()

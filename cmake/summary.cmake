# One screen of what was configured.

set(cuda_summary "off")
if(GRAFT_CUDA)
  set(cuda_summary "${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
endif()
message(STATUS "graft ${PROJECT_VERSION}: ${CMAKE_BUILD_TYPE}, ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}, "
               "CPU code for ${graft_cpu}")
message(STATUS "  CUDA ${cuda_summary}; tests ${GRAFT_TESTS}; bench ${GRAFT_BENCH}; NCCL ${GRAFT_NCCL}; MPI ${GRAFT_MPI}")
foreach(name IN LISTS graft_found)
  message(STATUS "  ${name}")
endforeach()

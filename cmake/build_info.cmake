# graft_build_info: engine/version.h's build_info(). The git hash is looked up at every build, and the
# file is rewritten only if it changed: a commit recompiles this one file.

string(TOUPPER "${CMAKE_BUILD_TYPE}" type)
list(JOIN graft_cxx_flags " " flags)
string(JOIN " " flags ${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${type}} ${flags})
string(REPLACE "${PROJECT_SOURCE_DIR}" "." flags "${flags}")
list(JOIN CMAKE_CUDA_ARCHITECTURES ";" architectures)
string(REPLACE "-real" "" architectures "${architectures}")
string(REPLACE ";" "," architectures "${architectures}")
if(NOT GRAFT_CUDA)
  set(architectures "")
endif()

find_package(Git QUIET)
set(build_info_file "${PROJECT_BINARY_DIR}/generated/build_info.cpp")
set(build_info_command
    "${CMAKE_COMMAND}" "-DGIT=${GIT_EXECUTABLE}" "-DSOURCE_DIR=${PROJECT_SOURCE_DIR}"
    "-DINPUT=${PROJECT_SOURCE_DIR}/cmake/build_info.cpp.in" "-DOUTPUT=${build_info_file}"
    "-DBUILD_INFO_VERSION=${PROJECT_VERSION}"
    "-DBUILD_INFO_COMPILER=${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
    "-DBUILD_INFO_BUILD_TYPE=${CMAKE_BUILD_TYPE}" "-DBUILD_INFO_FLAGS=${flags}"
    "-DBUILD_INFO_CUDA=${CMAKE_CUDA_COMPILER_VERSION}" "-DBUILD_INFO_ARCHITECTURES=${architectures}"
    -P "${PROJECT_SOURCE_DIR}/cmake/write_build_info.cmake")

add_custom_target(
  graft_git_hash
  COMMAND ${build_info_command}
  BYPRODUCTS "${build_info_file}"
  COMMENT "Looking up the git hash"
  VERBATIM)
add_library(graft_build_info OBJECT "${build_info_file}")
add_dependencies(graft_build_info graft_git_hash)
target_link_libraries(graft_build_info PUBLIC graft_flags)

# Run at every build: writes OUTPUT from INPUT, and touches it only if something changed.

cmake_minimum_required(VERSION 3.24)

set(BUILD_INFO_GIT unknown)
# A tarball unpacked inside somebody else's repository has no hash of its own.
if(GIT AND EXISTS "${SOURCE_DIR}/.git")
  execute_process(
    COMMAND "${GIT}" rev-parse --short=12 HEAD
    WORKING_DIRECTORY "${SOURCE_DIR}"
    OUTPUT_VARIABLE hash
    OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE failed
    ERROR_QUIET)
  if(NOT failed)
    set(BUILD_INFO_GIT "${hash}")
    execute_process(
      COMMAND "${GIT}" --no-optional-locks status --porcelain --untracked-files=no
      WORKING_DIRECTORY "${SOURCE_DIR}"
      OUTPUT_VARIABLE changes
      RESULT_VARIABLE failed
      ERROR_QUIET)
    if(NOT failed AND NOT changes STREQUAL "")
      string(APPEND BUILD_INFO_GIT "+dirty")
    endif()
  endif()
endif()

# What the program and libgraft_cuda.so must agree on: tensors, contexts and argument blocks are laid out by headers.
# No commit is in it, so that the two still fit where only other files changed.
set(digests "")
foreach(folder IN ITEMS engine ops tasks train)
  file(GLOB headers "${SOURCE_DIR}/${folder}/*.h")
  foreach(header IN LISTS headers)
    file(SHA256 "${header}" digest)
    cmake_path(GET header FILENAME name)
    string(APPEND digests "${folder}/${name} ${digest}\n")
  endforeach()
endforeach()
string(SHA256 BUILD_INFO_HEADERS "${digests}")
string(SUBSTRING "${BUILD_INFO_HEADERS}" 0 12 BUILD_INFO_HEADERS)
configure_file("${INPUT}" "${OUTPUT}" @ONLY)

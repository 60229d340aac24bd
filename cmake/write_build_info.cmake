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
configure_file("${INPUT}" "${OUTPUT}" @ONLY)

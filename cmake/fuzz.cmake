# Fuzz targets: tests/fuzz/<name>_fuzz.cpp with the parser's own sources, all of them instrumented, and nothing else
# of graft. scripts/fuzz.sh builds and runs them.

if(NOT CMAKE_CXX_COMPILER_ID STREQUAL Clang)
  message(FATAL_ERROR "graft: GRAFT_FUZZ needs libFuzzer, which comes with clang: -DCMAKE_CXX_COMPILER=clang++-16")
endif()

function(graft_fuzz_target name)
  list(TRANSFORM ARGN PREPEND "${PROJECT_SOURCE_DIR}/" OUTPUT_VARIABLE sources)
  add_executable(${name} EXCLUDE_FROM_ALL "${PROJECT_SOURCE_DIR}/tests/fuzz/${name}.cpp" ${sources})
  target_link_libraries(${name} PRIVATE graft_flags graft_dependencies)
  # A check that fails ends the run; unsigned wrap-around and the like are left to the language.
  target_compile_options(${name} PRIVATE -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all)
  add_dependencies(graft_fuzz ${name})
endfunction()

add_custom_target(graft_fuzz)
graft_fuzz_target(
  config_fuzz
  engine/require.cpp engine/settings.cpp train/config.cpp train/config_check.cpp train/config_file.cpp
  train/config_schema.cpp train/config_toml.cpp train/run_name.cpp train/suggest.cpp)
graft_fuzz_target(
  safetensors_fuzz
  engine/require.cpp engine/settings.cpp engine/shape.cpp train/config_file.cpp train/file_io.cpp train/safetensors.cpp
  train/safetensors_header.cpp train/suggest.cpp)

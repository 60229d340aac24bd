# One program a folder of tests: tests/ops/*_test.cpp -> graft_tests_ops. ctest gets one entry a file
# and kind of case (see register_tests.cmake), found by asking the built program.

file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/support/*.cpp"
     "${PROJECT_SOURCE_DIR}/tests/reference/*.cpp")
add_library(graft_test_support OBJECT ${sources})
target_link_libraries(graft_test_support PUBLIC graft_flags graft_dependencies graft_doctest)
target_compile_definitions(graft_test_support PUBLIC "GRAFT_SOURCE_DIR=\"${PROJECT_SOURCE_DIR}\"")
# Tests are compiled more often than they run long.
target_compile_options(graft_test_support PUBLIC -O1)

file(GLOB sources CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/*/*_test.cpp")
set(folders)
foreach(source IN LISTS sources)
  cmake_path(GET source PARENT_PATH folder)
  cmake_path(GET folder FILENAME folder)
  list(APPEND folders ${folder})
  list(APPEND sources_of_${folder} "${source}")
endforeach()
list(REMOVE_DUPLICATES folders)

foreach(folder IN LISTS folders)
  set(program graft_tests_${folder})
  graft_executable(${program} ${sources_of_${folder}})
  target_link_libraries(${program} PRIVATE graft_test_support)
  set(list "${PROJECT_BINARY_DIR}/generated/tests_${folder}.cmake")
  add_custom_command(
    TARGET ${program}
    POST_BUILD
    COMMAND "${CMAKE_COMMAND}" "-DPROGRAM=$<TARGET_FILE:${program}>" -DFOLDER=${folder} "-DOUTPUT=${list}"
            "-DSOURCE_DIR=${PROJECT_SOURCE_DIR}" -P "${PROJECT_SOURCE_DIR}/cmake/register_tests.cmake"
    BYPRODUCTS "${list}"
    VERBATIM)
  set(include "${PROJECT_BINARY_DIR}/generated/include_tests_${folder}.cmake")
  file(WRITE "${include}" "if(EXISTS \"${list}\")\n  include(\"${list}\")\nelse()\n"
                          "  add_test(${folder}_not_built ${program})\nendif()\n")
  set_property(DIRECTORY APPEND PROPERTY TEST_INCLUDE_FILES "${include}")
endforeach()

# Its command-line tests run the program.
if(TARGET graft AND TARGET graft_tests_train)
  add_dependencies(graft_tests_train graft)
endif()

# What a run survives, each script with few trials; docs/reliability.md has the long ones.
# Not with sanitizers, which have to be loaded before the library that makes calls fail.
if(TARGET graft AND NOT GRAFT_SANITIZE)
  function(add_reliability_test name)
    add_test(NAME reliability/${name}
             COMMAND "${PROJECT_SOURCE_DIR}/tests/reliability/${name}.sh" --graft "$<TARGET_FILE:graft>" ${ARGN})
    set_tests_properties(reliability/${name} PROPERTIES LABELS cpu TIMEOUT 300)
  endfunction()
  add_reliability_test(kill_while_saving --trials 20)
  add_reliability_test(fail_every_call --every 25)
  add_reliability_test(disk_full --sizes 3)
  add_reliability_test(soak --seconds 10 --longest 4)
endif()

# What the CUDA library needs from the program that loads it, checked where there is no GPU to load it for.
if(TARGET graft_cuda AND TARGET graft)
  add_test(NAME build/cuda_symbols
           COMMAND "${CMAKE_COMMAND}" "-DNM=${CMAKE_NM}" "-DPROGRAM=$<TARGET_FILE:graft>"
                   "-DLIBRARY=$<TARGET_FILE:graft_cuda>" -P "${PROJECT_SOURCE_DIR}/cmake/check_cuda_symbols.cmake")
  set_tests_properties(build/cuda_symbols PROPERTIES LABELS cpu)
endif()

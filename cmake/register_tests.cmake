# Run after a test program is built: writes its ctest entries. The program lists one line a file and
# kind of case: "<file>|<kind>|<filters>"; kinds are made of cpu or cuda, golden, slow.

cmake_minimum_required(VERSION 3.24)

execute_process(
  COMMAND "${PROGRAM}" --graft-list
  OUTPUT_VARIABLE listing
  ERROR_VARIABLE errors
  RESULT_VARIABLE failed)
if(failed)
  file(REMOVE "${OUTPUT}" "${PROGRAM}")
  message(FATAL_ERROR "${PROGRAM} could not list its tests (${failed}):\n${listing}${errors}")
endif()

set(text "")
string(REGEX MATCHALL "[^\n]+" lines "${listing}")
foreach(line IN LISTS lines)
  if(NOT line MATCHES "^(.*/)?([^/|]+)_test\\.[a-z]+\\|([a-z_]+)\\|")
    message(FATAL_ERROR "${PROGRAM}: not a line of a test listing: ${line}")
  endif()
  set(stem "${CMAKE_MATCH_2}")
  set(kind "${CMAKE_MATCH_3}")
  string(REPLACE "|" ";" fields "${line}")
  list(GET fields 0 file)
  list(SUBLIST fields 2 -1 filters)
  list(JOIN filters "]==] [==[" arguments)

  set(name "${FOLDER}/${stem}")
  if(NOT kind STREQUAL cpu)
    string(REGEX REPLACE "^cpu_" "" suffix "${kind}")
    string(APPEND name "/${suffix}")
  endif()
  string(REPLACE "_" ";" labels "${kind}")
  set(timeout 300)
  if("slow" IN_LIST labels)
    set(timeout 1800)
  endif()
  string(APPEND text "add_test([==[${name}]==] [==[${PROGRAM}]==] [==[--source-file=${file}]==] [==[${arguments}]==])\n")
  string(APPEND text "set_tests_properties([==[${name}]==] PROPERTIES LABELS \"${labels}\" TIMEOUT ${timeout}")
  string(APPEND text " WORKING_DIRECTORY [==[${SOURCE_DIR}]==]")
  if("cuda" IN_LIST labels)
    # One at a time: each expects the device's memory for itself.
    string(APPEND text " SKIP_RETURN_CODE 77 RESOURCE_LOCK gpu")
  endif()
  string(APPEND text ")\n")
endforeach()
file(WRITE "${OUTPUT}" "${text}")

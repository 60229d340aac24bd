# Fails if libgraft_cuda.so needs a symbol of graft that the program does not export: loading it on a
# machine with a GPU would fail then.

cmake_minimum_required(VERSION 3.24)

foreach(kind IN ITEMS undefined defined)
  if(kind STREQUAL undefined)
    set(file "${LIBRARY}")
  else()
    set(file "${PROGRAM}")
  endif()
  execute_process(COMMAND "${NM}" -D --format=posix --${kind}-only "${file}" OUTPUT_VARIABLE output
                  COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "_Z[A-Za-z]*N[A-Z]*5graft[A-Za-z0-9_.]*" ${kind} "${output}")
endforeach()
set(missing "")
foreach(symbol IN LISTS undefined)
  if(NOT symbol IN_LIST defined)
    string(APPEND missing "  ${symbol}\n")
  endif()
endforeach()
if(missing)
  message(FATAL_ERROR "${LIBRARY} needs what ${PROGRAM} does not export:\n${missing}")
endif()
list(LENGTH undefined count)
message(STATUS "${count} symbols of graft needed by the CUDA library, all exported by the program")

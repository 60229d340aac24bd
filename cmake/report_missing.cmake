# One message about everything that was not found, with the names it has in each place.

if(NOT graft_missing)
  return()
endif()

set(lines)
set(debian)
set(spack)
set(modules)
foreach(name IN LISTS graft_missing)
  string(REPLACE "|" ";" about "${graft_about_${name}}")
  list(POP_FRONT about purpose debian_name spack_name module_name without)
  string(APPEND lines "   ${name} (${purpose}): ${without}\n")
  string(APPEND debian " ${debian_name}")
  string(APPEND spack " ${spack_name}")
  string(APPEND modules " ${module_name}")
endforeach()
list(JOIN graft_missing ", " names)
if(GRAFT_FETCH_DEPS)
  set(fetch " Not downloaded:\n${graft_fetch_problems}")
else()
  set(fetch " Or download pinned versions:  cmake -B build -DGRAFT_FETCH_DEPS=ON")
endif()
message(
  FATAL_ERROR
    "graft: not found: ${names}\n${lines}"
    " Debian, Ubuntu:     apt-get install${debian}\n"
    " Spack:              spack install${spack} && spack load${spack}\n"
    " Modules:            module load${modules}    (sites differ: module spider <name>)\n"
    " Installed elsewhere: -DCMAKE_PREFIX_PATH=\"/one;/other\" or -D<name>_ROOT=/prefix\n"
    "${fetch}")

# Tests of files that the compiler must refuse. It is called directly, in parallel, and generates no code.

# What all calls have in common. The folders of packages are those of a target that uses moe::io where there is one, and
# is never built; without those that the compiler knows, whose order matters.
add_library(moe_refused OBJECT EXCLUDE_FROM_ALL support/kernels.cpp)
target_link_libraries(moe_refused PRIVATE moe::moe $<TARGET_NAME_IF_EXISTS:moe::io>)
set(folders "$<TARGET_PROPERTY:moe_refused,INCLUDE_DIRECTORIES>")
string(REGEX REPLACE "([][+.*()^$?|\\\\])" "\\\\\\1" own "${PROJECT_SOURCE_DIR}/include")
set(folders "$<FILTER:${folders},EXCLUDE,^(/usr/include|${own})/?$>")
set(options "${CMAKE_CXX20_STANDARD_COMPILE_OPTION}" "\"-I${PROJECT_SOURCE_DIR}/include\""
  "-isystem \"$<JOIN:${folders},\"\n-isystem \">\"")
list(JOIN options "\n" options)
set(moe_refused_options "${CMAKE_CURRENT_BINARY_DIR}/refused_options")
file(GENERATE OUTPUT "${moe_refused_options}" CONTENT "${options}\n")
separate_arguments(flags UNIX_COMMAND "${CMAKE_CXX_FLAGS}")
set(moe_refused_compiler "${CMAKE_CXX_COMPILER}" ${flags} "@${moe_refused_options}")

# moe_refused_headers(<name> <options of the compiler>... HEADERS <header>...): for the tests below, of files that
# include these anyway. g++ reads them once for all calls with the same options.
function(moe_refused_headers name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" HEADERS)
  list(TRANSFORM arg_HEADERS REPLACE "(.+)" "#include <\\1>")
  list(JOIN arg_HEADERS "\n" text)
  set(file "${CMAKE_CURRENT_BINARY_DIR}/${name}.hpp")
  file(CONFIGURE OUTPUT "${file}" CONTENT "${text}\n")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_custom_command(OUTPUT "${file}.gch"
      COMMAND ${moe_refused_compiler} ${arg_UNPARSED_ARGUMENTS} -MD -MF "${file}.d"
        -x c++-header "${file}" -o "${file}.gch"
      DEPENDS "${file}" "${moe_refused_options}" DEPFILE "${file}.d" VERBATIM COMMENT "Precompiling ${name}.hpp")
    add_custom_target(${name} ALL DEPENDS "${file}.gch")
  endif()
endfunction()

# moe_refused(<name of the test> <source> <headers, a name as above> <sentence, a regular expression>
#   <options of the compiler>...): the compiler says this.
function(moe_refused name source headers sentence)
  add_test(NAME ${name} COMMAND_EXPAND_LISTS
    COMMAND ${moe_refused_compiler} ${ARGN} -include "${CMAKE_CURRENT_BINARY_DIR}/${headers}.hpp" -fsyntax-only "${source}")
  set_tests_properties(${name} PROPERTIES PASS_REGULAR_EXPRESSION "${sentence}")
endfunction()

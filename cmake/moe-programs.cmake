# How this repository compiles its own tests, examples and benchmarks; users of moe::moe get none of it. MOE_MARCH is an
# option of the top file.
set(MOE_SANITIZE "" CACHE STRING "-fsanitize of tests, examples and benchmarks, for example address,undefined")
option(MOE_STRICT "Strict warnings, as errors" OFF)
option(MOE_JOIN "Compile many files of tests at once: faster from nothing, slower after a change" OFF)

# A machine that lacks the instruction set falls back to the compiler's default.
if(MOE_MARCH)
  include(CheckCXXSourceRuns)
  string(MAKE_C_IDENTIFIER "moe_runs_march_${MOE_MARCH}" moe_runs_march)
  set(CMAKE_REQUIRED_FLAGS "-march=${MOE_MARCH}")
  check_cxx_source_runs([[
    int main() {
    #ifdef __AVX512F__
      if (!__builtin_cpu_supports("avx512f")) return 1;
    #endif
    #ifdef __AVX2__
      if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
    #endif
    }]] ${moe_runs_march})
  unset(CMAKE_REQUIRED_FLAGS)
  if(${moe_runs_march})
    set(moe_march -march=${MOE_MARCH})
  else()
    message(WARNING "moe: this machine or compiler has no -march=${MOE_MARCH}; compiling without")
  endif()
endif()

if(MOE_STRICT)
  set(moe_warnings -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
  # The optimiser of g++ 12 warns about its own AVX-512 intrinsics and about Eigen's; the sanitizers check the same.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    list(APPEND moe_warnings -Wno-uninitialized -Wno-maybe-uninitialized -Wno-array-bounds -Wno-use-after-free)
  endif()
endif()

if(MOE_SANITIZE)
  set(moe_sanitize -fsanitize=${MOE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  # Eigen takes columns of matrices without rows, whose data is null: an offset that nothing is read at.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang" AND MOE_SANITIZE MATCHES "undefined")
    list(APPEND moe_sanitize -fno-sanitize=pointer-overflow)
    if(MOE_SANITIZE MATCHES "address")
      # AddressSanitizer reports what these would: a read of nothing, or beyond an object. A tenth of the compile time.
      list(APPEND moe_sanitize -fno-sanitize=null,object-size)
    endif()
  endif()
endif()

find_package(Threads REQUIRED)

# moe_options(<target>): makes a target use moe::moe, compiled as the options above say.
function(moe_options target)
  target_link_libraries(${target} PRIVATE moe::moe Threads::Threads)
  target_compile_options(${target} PRIVATE ${moe_warnings} ${moe_march} ${moe_sanitize})
  target_link_options(${target} PRIVATE ${moe_sanitize})
endfunction()

# moe_program(<name> <sources>...): an executable with moe_options.
function(moe_program name)
  add_executable(${name} ${ARGN})
  moe_options(${name})
endfunction()

# moe_share_kernels(<target>): takes the kernels from a library of the tests, where many programs are compiled at once:
# 1 s less each, 20 s where weights are in few bits. Not programs that are compiled for another instruction set.
function(moe_share_kernels target)
  if(MOE_JOIN AND TARGET moe_test_kernels AND moe_march)
    target_link_libraries(${target} PRIVATE moe_test_kernels)
    target_compile_options(${target} PRIVATE -include "${PROJECT_SOURCE_DIR}/tests/support/kernels.hpp")
  endif()
endfunction()

# moe_join_programs(<program> <number> <source>...): one program of several, whose first argument is the name of one, for
# tests from nothing: so many sources at a time instantiate what they share once. Each is in a namespace of its own, with
# its main, which has to return something.
function(moe_join_programs program number)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${ARGN})
  set(parts)
  set(table)
  set(declarations)
  while(ARGN)
    list(LENGTH parts part)
    set(includes)
    set(sources)
    foreach(source IN LISTS ARGN)
      list(LENGTH sources count)
      if(count EQUAL number)
        break()
      endif()
      list(POP_FRONT ARGN)
      cmake_path(GET source STEM name)
      file(STRINGS ${source} lines REGEX "^#include ")
      list(TRANSFORM lines REPLACE "include \"" "include \"${CMAKE_CURRENT_SOURCE_DIR}/")
      list(APPEND includes ${lines})
      list(APPEND sources "namespace page_${name} {\n#include \"${CMAKE_CURRENT_SOURCE_DIR}/${source}\"\n}")
      string(APPEND declarations "namespace page_${name} { int main(int, char**); }\n")
      string(APPEND table "  if (name == \"${name}\") return page_${name}::main(argc - 1, argv + 1);\n")
    endforeach()
    list(REMOVE_DUPLICATES includes)
    list(JOIN includes "\n" includes)
    list(JOIN sources "\n" sources)
    file(CONFIGURE OUTPUT ${program}_${part}.cpp CONTENT "${includes}\n${sources}\n" @ONLY)
    list(APPEND parts "${CMAKE_CURRENT_BINARY_DIR}/${program}_${part}.cpp")
  endwhile()
  file(CONFIGURE OUTPUT ${program}.cpp CONTENT "#include <string_view>\n${declarations}
int main(int argc, char** argv) {
  const std::string_view name = argc < 2 ? \"\" : argv[1];
${table}  return 2;\n}\n" @ONLY)
  moe_program(${program} ${parts} "${CMAKE_CURRENT_BINARY_DIR}/${program}.cpp")
endfunction()

# moe_add_mpi_test(<name> <ranks> <target> <arguments>...): runs a program by mpirun, where that works: some containers let
# it start nothing. Open MPI is told to run as root, on fewer cores than ranks and in containers; others do not read it.
set(moe_mpi_environment OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl_vader_single_copy_mechanism=none OMPI_MCA_mpi_yield_when_idle=1)
function(moe_add_mpi_test name ranks target)
  if(NOT DEFINED moe_mpirun_works)
    set(failed "no mpirun")
    if(MPIEXEC_EXECUTABLE)
      execute_process(COMMAND "${CMAKE_COMMAND}" -E env ${moe_mpi_environment} "${MPIEXEC_EXECUTABLE}"
        ${MPIEXEC_NUMPROC_FLAG} 2 "${CMAKE_COMMAND}" -E true RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET TIMEOUT 60)
    endif()
    if(failed)
      message(WARNING "moe: mpirun does not run here (${failed}): tests of ranks that are processes are left out")
      set(moe_mpirun_works OFF CACHE INTERNAL "")
    else()
      set(moe_mpirun_works ON CACHE INTERNAL "")
    endif()
  endif()
  if(moe_mpirun_works)
    add_test(NAME ${name}
      COMMAND "${MPIEXEC_EXECUTABLE}" ${MPIEXEC_NUMPROC_FLAG} ${ranks} $<TARGET_FILE:${target}> ${ARGN})
    set_tests_properties(${name} PROPERTIES TIMEOUT 300 PROCESSORS ${ranks} ENVIRONMENT "${moe_mpi_environment}")
  endif()
endfunction()

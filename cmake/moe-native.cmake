# What moe is compiled for. Part of the installed package.

# moe_make_native(<target>): makes it moe::moe with -march=${MOE_MARCH}, or for this machine if that is empty.
function(moe_make_native target)
  target_link_libraries(${target} INTERFACE moe::moe)
  if(MOE_MARCH AND NOT MOE_MARCH STREQUAL "native")
    target_compile_options(${target} INTERFACE -march=${MOE_MARCH})
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
    target_compile_options(${target} INTERFACE -march=native)
  else()
    target_compile_options(${target} INTERFACE -mcpu=native)  # clang knows -march=native on x86 only
  endif()
endfunction()

# moe_say_instruction_set(): one line per configuration, unless somebody has decided: by MOE_MARCH, or by -m options for
# the whole of the calling directory.
function(moe_say_instruction_set)
  get_property(said GLOBAL PROPERTY MOE_SAID_INSTRUCTION_SET)
  get_directory_property(options COMPILE_OPTIONS)
  string(TOUPPER "${CMAKE_BUILD_TYPE}" type)
  if(said OR MOE_MARCH OR NOT CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang"
      OR "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${type}} ${options}" MATCHES "(^|[ ;:])-m(arch=|cpu=|avx|fma|sse[34])")
    return()
  endif()
  set_property(GLOBAL PROPERTY MOE_SAID_INSTRUCTION_SET ON)

  separate_arguments(flags UNIX_COMMAND "${CMAKE_CXX_FLAGS}")
  if(CMAKE_CXX_COMPILER_TARGET)
    list(APPEND flags --target=${CMAKE_CXX_COMPILER_TARGET})
  endif()
  execute_process(COMMAND ${CMAKE_CXX_COMPILER} ${flags} -dM -E -x c++ /dev/null OUTPUT_VARIABLE macros ERROR_QUIET)
  set(compiled_for "the compiler's default")
  foreach(set AVX512F AVX2 AVX SSE4_2 SSE2 ARM_NEON)
    if(macros MATCHES "__${set}(__)? ")
      set(compiled_for ${set})
      break()
    endif()
  endforeach()
  message(STATUS "moe: moe::moe is compiled for ${compiled_for}, as no -march is given; moe::native, or "
    "-DCMAKE_CXX_FLAGS=-march=native, for all that this machine has (the same for all objects that share moe types)")
endfunction()

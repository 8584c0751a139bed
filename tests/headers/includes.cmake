# cmake -DINCLUDE=<include directory> -P includes.cmake
# Checks that includes point to the same folder, to one before it in the list below or to the concept of the folder above,
# that only core/simd*.hpp know xsimd, and that moe.hpp and gaussian.hpp reach every header, themselves or through another
# one.
cmake_minimum_required(VERSION 3.25)

set(layers core numeric routing routing/balance routing/capacity kernel gate/rule|expert/stage router|gate|expert gate/wrap
  layer train|gaussian/model gaussian/pass|gaussian/predict gaussian/fit gaussian/inference|gaussian/theory
  io/file io/checkpoint io/families io/block io compress|serve|policy|mpi)

# rank(<folder> <result>): place of the folder in the list above, -1 if it has none.
function(rank folder result)
  set(${result} -1 PARENT_SCOPE)
  set(place 0)
  foreach(layer IN LISTS layers)
    if(folder MATCHES "^(${layer})$")
      set(${result} ${place} PARENT_SCOPE)
    endif()
    math(EXPR place "${place} + 1")
  endforeach()
endfunction()

file(GLOB_RECURSE headers RELATIVE "${INCLUDE}/moe" "${INCLUDE}/moe/*/*.hpp")
if(NOT headers)
  message(SEND_ERROR "no headers below ${INCLUDE}/moe")
endif()
file(STRINGS "${INCLUDE}/moe/moe.hpp" included REGEX "^#include")
file(STRINGS "${INCLUDE}/moe/gaussian.hpp" statistics REGEX "^#include")
list(APPEND included ${statistics})
foreach(header IN LISTS headers)
  cmake_path(GET header PARENT_PATH folder)
  rank("${folder}" own_rank)
  if(own_rank EQUAL -1)
    message(SEND_ERROR "moe/${header}: folder ${folder} belongs to no layer")
  endif()

  file(STRINGS "${INCLUDE}/moe/${header}" includes REGEX "^ *# *include")
  list(APPEND included ${includes})
  foreach(include IN LISTS includes)
    if(include MATCHES "[<\"]xsimd" AND NOT header MATCHES "^core/simd")
      message(SEND_ERROR "moe/${header}: ${include}, only moe/core/simd*.hpp may")
    elseif(include MATCHES "\"moe/(.+)/[^/]+[.]hpp\"")
      set(other ${CMAKE_MATCH_1})
      rank(${other} other_rank)
      cmake_path(GET folder PARENT_PATH above)
      if(NOT other STREQUAL folder AND NOT other_rank LESS own_rank AND NOT include MATCHES "\"moe/${above}/concept[.]hpp\"")
        message(SEND_ERROR "moe/${header}: ${include}, expected ${folder} or a lower layer")
      endif()
    elseif(include MATCHES "\"" AND NOT include MATCHES "\"moe/version.hpp\"")
      message(SEND_ERROR "moe/${header}: ${include}, expected \"moe/<folder>/<name>.hpp\" or <...>")
    endif()
  endforeach()
endforeach()

foreach(header IN LISTS headers)
  if(NOT header MATCHES "^(io|mpi)/" AND NOT "#include \"moe/${header}\"" IN_LIST included)
    message(SEND_ERROR "neither moe/moe.hpp nor moe/gaussian.hpp reaches moe/${header}")
  endif()
endforeach()

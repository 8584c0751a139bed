# cmake -DINCLUDE=<include directory> -P includes.cmake
# Checks that includes point to the same folder, to one before it in the list below or to the concept of the folder above,
# that only core/simd*.hpp know xsimd, that moe.hpp and the other tables of contents reach every header,
# themselves or through another one, that the tables of contents list what they should, and that no family of
# checkpoints is left out.
cmake_minimum_required(VERSION 3.25)

set(layers core numeric routing routing/balance routing/capacity kernel gate/rule|expert/stage router|gate|expert gate/wrap
  layer compress train|sequence|gaussian/model gaussian/pass|gaussian/predict|gaussian/design gaussian/fit gaussian/inference
  gaussian/theory likelihood io/file io/checkpoint io/families io/adapter io/block io serve|policy mpi)

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
file(STRINGS "${INCLUDE}/moe/moe.hpp" contents REGEX "^#include")
set(included ${contents})
foreach(table gaussian likelihood compress serve sequence policy mpi)
  file(STRINGS "${INCLUDE}/moe/${table}.hpp" lines REGEX "^#include")
  list(APPEND included ${lines})
endforeach()
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
  if(NOT header MATCHES "^io/" AND NOT header STREQUAL "mpi/mpi_communicator.hpp" AND NOT "#include \"moe/${header}\"" IN_LIST included)
    message(SEND_ERROR "none of the tables of contents reaches moe/${header}")
  endif()
endforeach()

# moe.hpp lists what users include of these folders. What they get through another header, and never write a name of
# without it, is internal; a header of another folder is listed where somebody writes a part of his own.
set(listed_folders "(gate|gate/rule|gate/wrap|router|expert|expert/stage|layer|train|routing|routing/balance|routing/capacity)")
set(internal
  expert/checks.hpp expert/gathered_runner.hpp expert/latent_plans.hpp expert/lent_experts.hpp expert/pooled_experts.hpp
  expert/stage/backward_stages.hpp expert/stage/forward_stages.hpp expert/stage/hidden_rows.hpp
  expert/stage/panel_runner.hpp expert/stage/stages.hpp
  gate/rule/binary_codes.hpp gate/rule/score_weights.hpp gate/rule/taken_groups.hpp gate/rule/tempered.hpp
  gate/rule/token_loop.hpp gate/rule/top_k_blocks.hpp gate/rule/top_k_rule.hpp gate/rule/weights.hpp
  layer/compressed_tokens.hpp layer/gate_union.hpp layer/grouped_rows.hpp layer/merged_parameters.hpp
  layer/multi_gate_checks.hpp layer/multi_gate_tape.hpp layer/soft_slots.hpp
  router/calibration.hpp routing/balance/token_sum.hpp routing/token_groups.hpp
  train/elementwise.hpp train/local_answers.hpp train/row_loss.hpp)
foreach(header IN LISTS headers)
  if(header MATCHES "^${listed_folders}/[^/]+$")
    set(is_listed NO)
    if("#include \"moe/${header}\"" IN_LIST contents)
      set(is_listed YES)
    endif()
    if(header IN_LIST internal)
      list(REMOVE_ITEM internal ${header})
      if(is_listed)
        message(SEND_ERROR "moe/moe.hpp lists moe/${header}, which is internal")
      endif()
    elseif(NOT is_listed)
      message(SEND_ERROR "moe/moe.hpp does not list moe/${header}, nor is it internal (see includes.cmake)")
    endif()
  endif()
endforeach()
if(internal)
  message(SEND_ERROR "includes.cmake lists headers as internal that are not there: ${internal}")
endif()

# Each table of contents lists headers of its own part that are there, each once.
foreach(table moe compress gaussian likelihood io serve sequence policy mpi)
  file(STRINGS "${INCLUDE}/moe/${table}.hpp" lines REGEX "^#include")
  set(before)
  foreach(line IN LISTS lines)
    string(REGEX REPLACE "#include \"moe/(.*)\"" "\\1" header "${line}")
    if(NOT EXISTS "${INCLUDE}/moe/${header}")
      message(SEND_ERROR "moe/${table}.hpp: ${line}, which is not there")
    elseif(header IN_LIST before)
      message(SEND_ERROR "moe/${table}.hpp lists moe/${header} twice")
    elseif(table STREQUAL "moe" AND header MATCHES "^(compress|gaussian|likelihood|io|serve|sequence|policy|mpi)/" OR
           NOT table STREQUAL "moe" AND NOT header MATCHES "^${table}/")
      message(SEND_ERROR "moe/${table}.hpp lists moe/${header}, which is of another part")
    endif()
    list(APPEND before ${header})
  endforeach()
endforeach()

# Every family of checkpoints that a header defines is in the table.
file(READ "${INCLUDE}/moe/io/families/families.hpp" table)
foreach(header IN LISTS headers)
  if(header MATCHES "^io/families/")
    file(STRINGS "${INCLUDE}/moe/${header}" lines REGEX "^inline constexpr Family k")
    foreach(line IN LISTS lines)
      string(REGEX REPLACE "^inline constexpr Family (k[A-Za-z0-9]+).*" "\\1" family "${line}")
      if(NOT table MATCHES "detail::${family},")
        message(SEND_ERROR "moe/${header} defines ${family}, which moe/io/families/families.hpp does not list")
      endif()
    endforeach()
  endif()
endforeach()

# SPDX-License-Identifier: MIT
# Every header of a router, gate or expert in moe/moe.hpp is one that warm_parts.cpp includes, so that a new part is not
# forgotten there.
file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/../../include/moe/moe.hpp" listed REGEX "moe/(router|gate|expert)/")
file(READ "${CMAKE_CURRENT_LIST_DIR}/warm_parts.cpp" program)
foreach(include IN LISTS listed)
  if(include MATCHES "concept.hpp|expert_set.hpp|/rule/|/stage/|widths.hpp")
    continue()
  endif()
  string(FIND "${program}" "${include}" place)
  if(place EQUAL -1)
    message(SEND_ERROR "warm_parts.cpp lacks ${include}")
  endif()
  math(EXPR count "${count} + 1")
endforeach()
if(NOT count)
  message(FATAL_ERROR "moe.hpp lists no parts")
endif()
message("${count} parts")

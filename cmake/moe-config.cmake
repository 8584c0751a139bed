# find_package(moe [COMPONENTS io]) defines moe::moe and, where nlohmann-json is found, moe::io.
# MOE_OPENMP=OFF, set before, keeps OpenMP out.
if(NOT TARGET moe::moe)
  # Dependencies are searched without a version, see moe_require in the sources; the headers check it.
  include(CMakeFindDependencyMacro)
  if(NOT TARGET Eigen3::Eigen)
    find_dependency(Eigen3 CONFIG)
  endif()
  if(NOT TARGET xsimd AND NOT TARGET xsimd::xsimd)
    find_dependency(xsimd CONFIG)
  endif()
  include("${CMAKE_CURRENT_LIST_DIR}/moe-xsimd.cmake")
  include("${CMAKE_CURRENT_LIST_DIR}/moe-targets.cmake")

  # The OpenMP of the compiler in use, which need not be the one that moe was installed with.
  if(NOT DEFINED MOE_OPENMP OR MOE_OPENMP)
    find_package(OpenMP QUIET COMPONENTS CXX)
    if(TARGET OpenMP::OpenMP_CXX)
      target_link_libraries(moe::moe INTERFACE OpenMP::OpenMP_CXX)
    endif()
  endif()
endif()

if(NOT TARGET moe::io AND EXISTS "${CMAKE_CURRENT_LIST_DIR}/moe-io-targets.cmake")
  find_package(nlohmann_json QUIET CONFIG)
  if(TARGET nlohmann_json::nlohmann_json)
    include("${CMAKE_CURRENT_LIST_DIR}/moe-io-targets.cmake")
  endif()
endif()

foreach(moe_component IN LISTS moe_FIND_COMPONENTS)
  if(TARGET moe::${moe_component})
    set(moe_${moe_component}_FOUND TRUE)
  elseif(moe_FIND_REQUIRED_${moe_component})
    set(moe_FOUND FALSE)
    set(moe_NOT_FOUND_MESSAGE "component ${moe_component} is unknown or lacks its package (io needs nlohmann_json)")
  endif()
endforeach()
unset(moe_component)

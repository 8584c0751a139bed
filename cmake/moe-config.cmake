# find_package(moe [COMPONENTS io mpi]) defines moe::moe, moe::native and, where nlohmann-json is found, moe::io; with the
# component mpi also moe::mpi, where moe was installed with it and MPI is found.
# MOE_OPENMP=OFF, set before, keeps OpenMP out; MOE_MARCH is the -march of moe::native, "native" by default.
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

if(NOT TARGET moe::native)
  include("${CMAKE_CURRENT_LIST_DIR}/moe-native.cmake")
  add_library(moe::native INTERFACE IMPORTED)
  moe_make_native(moe::native)
  if(NOT moe_FIND_QUIETLY)
    moe_say_instruction_set()
  endif()
endif()

if(NOT TARGET moe::io AND EXISTS "${CMAKE_CURRENT_LIST_DIR}/moe-io-targets.cmake")
  find_package(nlohmann_json QUIET CONFIG)
  find_package(Threads QUIET)
  if(TARGET nlohmann_json::nlohmann_json AND TARGET Threads::Threads)
    include("${CMAKE_CURRENT_LIST_DIR}/moe-io-targets.cmake")
  endif()
endif()

if("mpi" IN_LIST moe_FIND_COMPONENTS AND NOT TARGET moe::mpi AND TARGET moe::io
    AND EXISTS "${CMAKE_CURRENT_LIST_DIR}/moe-mpi-targets.cmake")
  find_package(MPI QUIET COMPONENTS CXX)
  if(TARGET MPI::MPI_CXX)
    include("${CMAKE_CURRENT_LIST_DIR}/moe-mpi-targets.cmake")
  endif()
endif()

foreach(moe_component IN LISTS moe_FIND_COMPONENTS)
  if(TARGET moe::${moe_component})
    set(moe_${moe_component}_FOUND TRUE)
  elseif(moe_FIND_REQUIRED_${moe_component})
    set(moe_FOUND FALSE)
    set(moe_NOT_FOUND_MESSAGE "component ${moe_component} is unknown or lacks its package (io needs nlohmann_json, mpi also MPI)")
  endif()
endforeach()
unset(moe_component)

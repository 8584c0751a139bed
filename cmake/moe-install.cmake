# Headers, find_package(moe) and pkg-config. Nothing depends on the architecture, so all of it goes to share/.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(moe_config_dir "${CMAKE_INSTALL_DATADIR}/cmake/moe")

# The installed package asks find_package for what it links; it cannot for a download or a part of the parent project.
foreach(target Eigen3::Eigen xsimd nlohmann_json::nlohmann_json)
  if(TARGET ${target})
    get_target_property(imported ${target} IMPORTED)
    get_target_property(downloaded ${target} MOE_DOWNLOADED)
    if(downloaded OR NOT imported)
      message(STATUS "moe: no install rules, because ${target} is not from an installed package")
      set(MOE_INSTALL OFF)
      return()
    endif()
  endif()
endforeach()

install(TARGETS moe EXPORT moe-targets FILE_SET HEADERS)
install(EXPORT moe-targets NAMESPACE moe:: DESTINATION "${moe_config_dir}")
if(TARGET moe_io)  # a set of its own: it is loaded only where nlohmann-json is found
  install(TARGETS moe_io EXPORT moe-io-targets FILE_SET HEADERS)
  install(EXPORT moe-io-targets NAMESPACE moe:: DESTINATION "${moe_config_dir}")
endif()
if(TARGET moe_mpi)  # loaded only where it is asked for, as looking for MPI takes seconds
  install(TARGETS moe_mpi EXPORT moe-mpi-targets FILE_SET HEADERS)
  install(EXPORT moe-mpi-targets NAMESPACE moe:: DESTINATION "${moe_config_dir}")
endif()

# Before 1.0 a minor version may break its users.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/moe-config-version.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES cmake/moe-config.cmake cmake/moe-native.cmake cmake/moe-xsimd.cmake
  "${PROJECT_BINARY_DIR}/moe-config-version.cmake"
  DESTINATION "${moe_config_dir}")

configure_file(cmake/moe.pc.in moe.pc @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/moe.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")

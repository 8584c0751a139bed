# The packages that the headers include: those of the machine, else a download.
include(FetchContent)

# moe_require(<package> <target> <oldest version> <repository> <tag> <include directory in it>)
# Makes <target> exist: as the parent project defines it, as find_package finds it, or from a download, of which only the
# headers are used. Packages are searched without a version because many accept only their own major one
# (find_package(Eigen3 3.4) refuses Eigen 5, the range 3.4...5 refuses 3.4.0), and checked afterwards.
function(moe_require package target oldest repository tag directory)
  if(NOT TARGET ${target})
    string(TOLOWER ${package} name)
    FetchContent_Declare(${package} GIT_REPOSITORY ${repository} GIT_TAG ${tag} GIT_SHALLOW ON
      SOURCE_SUBDIR only-the-headers-are-used SYSTEM FIND_PACKAGE_ARGS QUIET CONFIG)
    FetchContent_MakeAvailable(${package})
    if(${package}_VERSION AND ${package}_VERSION VERSION_LESS oldest)
      message(FATAL_ERROR "moe: ${package} ${${package}_VERSION} in ${${package}_DIR} is older than ${oldest}; "
        "install a newer one, or download it with -DFETCHCONTENT_TRY_FIND_PACKAGE_MODE=NEVER")
    endif()
    if(NOT TARGET ${target} AND DEFINED ${name}_SOURCE_DIR)
      message(STATUS "moe: using ${package} from ${${name}_SOURCE_DIR}")
      add_library(${target} INTERFACE IMPORTED)
      target_include_directories(${target} SYSTEM INTERFACE "${${name}_SOURCE_DIR}/${directory}")
      set_target_properties(${target} PROPERTIES MOE_DOWNLOADED ON)
    endif()
  endif()
endfunction()

moe_require(Eigen3 Eigen3::Eigen 3.4 https://gitlab.com/libeigen/eigen.git 3.4.0 .)
if(NOT TARGET xsimd::xsimd)
  moe_require(xsimd xsimd 8.1 https://github.com/xtensor-stack/xsimd.git 13.2.0 include)
endif()
include(moe-xsimd)

if(MOE_OPENMP)
  find_package(OpenMP QUIET COMPONENTS CXX)
endif()

# Optional parts are on where their package is found; switched on by hand they download it.
find_package(nlohmann_json QUIET CONFIG)
if(TARGET nlohmann_json::nlohmann_json)
  set(nlohmann_json_FOUND ON)
endif()
option(MOE_IO "Target moe::io: checkpoints (nlohmann-json)" ${nlohmann_json_FOUND})
if(MOE_IO)
  moe_require(nlohmann_json nlohmann_json::nlohmann_json 3.9 https://github.com/nlohmann/json.git v3.11.3 include)
endif()

# Nothing downloads MPI: what others start a program with is a matter of the machine. It takes seconds to look for, which
# a project that moe is a part of does not wait for unless it sets MOE_MPI.
set(MOE_MPI AUTO CACHE STRING "Target moe::mpi, experts over processes: ON, OFF, AUTO where MPI is (needs MOE_IO)")
set(moe_mpi OFF)
if(MOE_MPI STREQUAL "AUTO" AND MOE_IO AND PROJECT_IS_TOP_LEVEL)
  find_package(MPI QUIET COMPONENTS CXX)
  set(moe_mpi ${MPI_CXX_FOUND})
elseif(MOE_MPI AND NOT MOE_MPI STREQUAL "AUTO")
  find_package(MPI QUIET COMPONENTS CXX)
  if(NOT (MPI_CXX_FOUND AND MOE_IO))
    message(FATAL_ERROR "moe: MOE_MPI=${MOE_MPI} needs an MPI that find_package(MPI) finds, and MOE_IO=ON")
  endif()
  set(moe_mpi ON)
endif()

set(benchmark_FOUND OFF)
if(PROJECT_IS_TOP_LEVEL)
  find_package(benchmark QUIET CONFIG)
endif()
option(MOE_BENCH "Build the benchmarks (Google Benchmark)" ${benchmark_FOUND})

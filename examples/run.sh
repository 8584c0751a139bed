#!/bin/sh
# Compiles the main example, `digits`, for this machine and runs it: it trains a mixture of experts per gate on
# handwritten digits, prints a table and draws a picture. Packages that are missing are installed on Debian.
#   examples/run.sh               the table, half a minute to a minute after the packages; then the picture
#   examples/run.sh --quick       this and any other argument goes to digits: try --help; files by absolute paths
#   examples/run.sh --build-all   before other arguments: afterwards compiles the other examples, in 5 core minutes
# Programs go to examples/examples below ${MOE_BUILD_DIR:-build}, what digits writes to examples/output there.
set -eu

others=
if [ "${1:-}" = --build-all ]; then others=yes; shift; fi

unset CDPATH  # with it, cd prints
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/cmake/debian-packages.sh"
need g++ g++
need cmake cmake
need ninja ninja-build
for library in libeigen3-dev libxsimd-dev libcli11-dev nlohmann-json3-dev; do need - $library; done

cores=$(nproc)
if [ "$cores" -gt 1 ]; then compile="half a minute"; else compile="a minute"; fi
echo "Next: ${missing:+packages, as fast as the network is; }compiling, $compile on $cores core(s); training, 3 s."
install_needed

build=${MOE_BUILD_DIR:-$root/build}
mkdir -p "$build/examples/output"
build=$(cd "$build" && pwd)/examples
if command -v ccache >/dev/null 2>&1; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
# -O2 compiles faster than -O3 and costs the examples no speed.
watched "configuring" cmake -S "$root" --preset release -B "$build" -DCMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG" \
  -DMOE_TESTS=OFF -DMOE_BENCH=OFF
watched "compiling" cmake --build "$build" --target digits

# The example writes its files to the directory it runs in.
cd "$build/output"
rm -f ./*.svg ./*.svg.gp
../examples/digits "$@"

# gnuplot and what it needs are many packages: after the table, and only if there is a picture to draw.
for script in ./*.svg.gp; do
  picture=$PWD/$(basename "$script" .gp)
  [ -e "$script" ] || continue
  if [ ! -e "$picture" ]; then
    missing=
    need gnuplot gnuplot-nox
    if (install_needed); then gnuplot "$script" || echo "No picture: gnuplot failed"; fi
  fi
  if [ -e "$picture" ]; then echo "Picture: $picture"; fi
done

if [ "$others" ]; then
  watched "compiling the other examples, about $(((5 + cores - 1) / cores)) min" cmake --build "$build"
  echo "Examples: $build/examples"
fi

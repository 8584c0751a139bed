#!/bin/sh
# Compiles the main example, `digits`, for this machine and runs it: it trains a mixture of experts per gate on
# handwritten digits, prints a table and draws a picture. Packages that are missing are installed on Debian.
#   examples/run.sh               the table, half a minute to a minute after the packages; then the picture
#   examples/run.sh --quick       this and any other argument goes to digits: try --help; files by absolute paths
#   examples/run.sh --build-all   before other arguments: afterwards compiles the other examples, in 5 core minutes
#   examples/run.sh --systems [--quick] [--seed N] [NAME...]
#                                 instead: compiles and runs examples/systems, all or some, and prints what they claim;
#                                 fails if a claim does. All of them with their own seeds write the table of its README.
# Programs go to examples/examples below ${MOE_BUILD_DIR:-build}, what digits writes to examples/output there.
set -eu

others='' systems=''
case "${1:-}" in
  --build-all) others=yes; shift ;;
  --systems) systems=yes; shift ;;
esac

unset CDPATH  # with it, cd prints
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/cmake/debian-packages.sh"
need g++ g++
need cmake cmake
need ninja ninja-build
for library in libeigen3-dev libxsimd-dev libcli11-dev nlohmann-json3-dev; do need - $library; done

cores=$(nproc)
if [ "$systems" ]; then
  plan="compiling and running, up to $(((12 + cores - 1) / cores)) min on $cores core(s)"
elif [ "$cores" -gt 1 ]; then
  plan="compiling, half a minute on $cores core(s); training, 3 s"
else
  plan="compiling, a minute on $cores core(s); training, 3 s"
fi
echo "Next: ${missing:+packages, as fast as the network is; }$plan."
install_needed

build=${MOE_BUILD_DIR:-$root/build}
mkdir -p "$build/examples/output"
build=$(cd "$build" && pwd)/examples
if command -v ccache >/dev/null 2>&1; then
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_SLOPPINESS=pch_defines,time_macros
fi
# -O2 compiles faster than -O3 and costs the examples no speed.
watched "configuring" cmake -S "$root" --preset release -B "$build" -DCMAKE_CXX_FLAGS_RELEASE="-O2 -DNDEBUG" \
  -DMOE_TESTS=OFF -DMOE_BENCH=OFF

# gnuplot and what it needs are many packages: only if there is a picture to draw.
draw_pictures() {
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
}

# The examples write their files to the directory they run in.
cd "$build/output"
rm -f ./*.svg ./*.svg.gp
if [ "$systems" ]; then
  . "$root/examples/systems/run.sh"
  draw_pictures
  exit "$failed"
fi
watched "compiling" cmake --build "$build" --target digits
../examples/digits "$@"
draw_pictures

if [ "$others" ]; then
  watched "compiling the other examples, about $(((5 + cores - 1) / cores)) min" cmake --build "$build" --target examples
  echo "Examples: $build/examples"
fi

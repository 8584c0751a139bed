#!/bin/sh
# Builds the examples for this machine and runs the main one, `digits`, which trains a mixture of experts on handwritten
# digits. Arguments are passed on to it (try --help). Works on a bare Debian 12: packages that are missing are installed.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/cmake/debian-packages.sh"
need g++ g++
need cmake cmake
need ninja ninja-build
need gnuplot gnuplot-nox
for library in libeigen3-dev libxsimd-dev libcli11-dev nlohmann-json3-dev; do need - $library; done
install_needed

build=${MOE_BUILD_DIR:-$root/build}
cmake -S "$root" --preset release -B "$build/examples" -DMOE_TESTS=OFF -DMOE_BENCH=OFF >/dev/null
cmake --build "$build/examples"

# The example writes its files to the directory it runs in.
mkdir -p "$build/examples/output"
cd "$build/examples/output"
rm -f ./*.svg
../examples/digits "$@"
for plot in "$PWD"/*.svg; do
  if [ -e "$plot" ]; then echo "Plot: $plot"; fi
done

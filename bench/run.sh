#!/bin/sh
# Measures mixture-of-experts layers beside the machine's limits and loops around Eigen, OpenBLAS and oneDNN.
#   bench/run.sh                     shapes of published models: about half an hour, up to 13 GB of memory
#   bench/run.sh --quick             three shapes: below five minutes, up to 7 GB
#   bench/run.sh --march x86-64-v3   compiled for AVX2 (default: native); peers are then kept to AVX2, too
#   bench/run.sh --shape OLMoE       only this shape; may be repeated, and combined with --quick
#   bench/run.sh --formats           instead, formats of weights beside floats: three shapes, ten minutes, up to 11 GB;
#                                    with --quick two shapes, three minutes and 4 GB; with --shape those
# Prints the table on stdout and progress on stderr; JSON and picture go to ${MOE_BUILD_DIR:-build}/bench/output. Any
# other shape: build/bench/bench/moe_bench_shape --help. Packages that are missing are installed on Debian.
set -eu

march=native options=
while [ $# -gt 0 ]; do
  case "$1" in
    --quick | --formats) options="$options $1" ;;
    --shape) options="$options --shape ${2:?--shape needs a name}"; shift ;;
    --march) march=${2:?--march needs a value, for example x86-64-v3}; shift ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done

unset CDPATH  # with it, cd prints
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/cmake/debian-packages.sh"
need g++ g++
need cmake cmake
need ninja ninja-build
need gnuplot gnuplot-nox
for library in libeigen3-dev libxsimd-dev libbenchmark-dev libcli11-dev nlohmann-json3-dev; do need - $library; done
for peer in libopenblas-dev libdnnl-dev; do need - $peer; done
case "$options" in
  *--quick* | *--shape*) measuring="two to five minutes" ;;
  *--formats*) measuring="ten minutes" ;;
  *) measuring="half an hour" ;;
esac
echo "What follows: ${missing:+packages, as fast as the network is; }compiling, a minute or two; measuring, $measuring." >&2
install_needed >&2

build=${MOE_BUILD_DIR:-$root/build}
mkdir -p "$build"
build=$(cd "$build" && pwd)/bench
if command -v ccache >/dev/null 2>&1; then
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_SLOPPINESS=pch_defines,time_macros
fi
{
  if [ -z "${CXX:-}" ]; then export CXX=g++; fi
  cmake -S "$root" --preset release -B "$build" -DMOE_MARCH="$march" \
    -DMOE_TESTS=OFF -DMOE_EXAMPLES=OFF -DMOE_BENCH=ON >/dev/null
  cmake --build "$build" --target moe_bench_table moe_bench_shape
} >&2

# shellcheck disable=SC2086  # a list
exec "$build/bench/moe_bench_table" $options --output "$build/output"

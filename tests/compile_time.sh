#!/bin/sh
# Prints how long it takes to compile what users begin with, alone and without ccache, as a table: seconds of the
# processor, which other programs on the machine change little. Nothing fails for being slow.
#   tests/compile_time.sh [<compiler>...]    default: g++ and clang++, as far as they are there, with -O2
set -eu

unset CDPATH  # with it, cd prints
root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -eq 0 ]; then
  for compiler in g++ clang++; do
    if command -v "$compiler" >/dev/null 2>&1; then set -- "$@" "$compiler"; fi
  done
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# openmp <compiler>: its option, if it has it
openmp() {
  echo 'int main() {}' >"$work/probe.cpp"
  if "$1" -fopenmp "$work/probe.cpp" -o "$work/probe" 2>/dev/null; then echo -fopenmp; fi
}

eigen=/usr/include/eigen3
for folder in /usr/local/include/eigen3 "${EIGEN3_INCLUDE_DIR:-}"; do
  if [ -d "$folder" ]; then eigen=$folder; fi
done

# row <what> <source>: user time of each compiler.
row() {
  printf '| %s |' "$1"
  shift
  source=$1
  shift
  for compiler in "$@"; do
    option=$(openmp "$compiler")
    # The second line of `times` is what the children took: "0m8.10s 0m0.32s".
    # shellcheck disable=SC2086  # one option or none
    taken=$("$compiler" -std=c++20 -O2 $option -I "$root/include" -isystem "$eigen" -c "$source" -o "$work/out.o" && times)
    printf '%s\n' "$taken" | sed -n '2s/^\([0-9]*\)m\([0-9.]*\)s.*/\1 \2/p' | {
      read -r minutes seconds
      printf ' %s |' "$(awk "BEGIN { printf \"%.1f\", $minutes * 60 + $seconds }")"
    }
  done
  echo
}

# include <header>...: a file that includes them and no more.
include() {
  file=$work/include.cpp
  printf '#include <%s>\n' "$@" >"$file"
}

printf '| Seconds |'
printf ' %s |' "$@"
printf '\n|---|'
for compiler in "$@"; do printf -- '---:|'; done
echo
include Eigen/Core xsimd/xsimd.hpp
row 'Eigen and xsimd, included' "$file" "$@"
include moe/moe.hpp
row 'moe/moe.hpp, included' "$file" "$@"
include moe/gaussian.hpp
row 'moe/gaussian.hpp, included' "$file" "$@"
include moe/io.hpp
row 'moe/io.hpp, included' "$file" "$@"
for example in hello training_loop hierarchical own_gate own_expert; do
  row "examples/$example.cpp" "$root/examples/$example.cpp" "$@"
done

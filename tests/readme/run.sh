#!/bin/sh
# Do the README and .github/*.md say what works?
#   run.sh --quick <work directory>        links, options, excerpts: code blocks that name a file, which has their lines
#   run.sh <work directory> [<compiler>]   also the other C++ blocks, as the body of a function of context.hpp, and the
#                                          lines of the sh blocks, in a fresh clone of HEAD for each document
#   run.sh --long <work directory> [...]   also those lines that take minutes
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
mode=default
case "${1:-}" in --quick | --long) mode=${1#--}; shift ;; esac
mkdir -p "${1:?work directory}"
work=$(cd "$1" && pwd)
compiler=${2:-g++}
passed=0 failed=0

# result <name> <status> [<file with details>]
result() {
  if [ "$2" -eq 0 ]; then
    echo "ok      $1"
    passed=$((passed + 1))
  else
    echo "FAILED  $1"
    if [ "${3:-}" ]; then tail -n 40 "$3"; fi
    failed=$((failed + 1))
  fi
}

# blocks <language> <document>: the blocks of that language, one after the other, each after "@@@ <rest of the fence>".
blocks() {
  awk -v language="$1" '
    /^```/ { if (inside || other) { inside = other = 0; next }
             inside = $1 == "```" language; other = !inside
             if (inside) { sub(/^```[a-z]+ */, ""); print "@@@ " $0 }
             next }
    inside { print }' "$2"
}

check_links() {
  status=0
  : >"$work/missing"
  awk '/^```/ { code = !code } !code' "$1" | grep -o ']([^)]*)' | sed 's/^](//; s/[#)].*//' |
    grep -v '^http' >"$work/links" || true  # no links
  while IFS= read -r link; do
    [ -e "$(dirname "$1")/$link" ] || { echo "no file $link" >>"$work/missing"; status=1; }
  done <"$work/links"
  result "${1#"$root"/}: links" "$status" "$work/missing"
}

# Every option of CMake is in the table of the README, and nothing else.
check_options() {
  grep -rhE --include=CMakeLists.txt --include='*.cmake' '^ *(option\(MOE_|set\(MOE_[A-Z_]+ .*CACHE)' \
    "$root/CMakeLists.txt" "$root/cmake" "$root/tests" | sed 's/.*(\(MOE_[A-Z_]*\) .*/\1/' | sort -u >"$work/options"
  grep -E '^\| `MOE_' "$root/README.md" | cut -d'|' -f2 | grep -oE 'MOE_[A-Z_]+' | sort -u >"$work/documented"
  status=0
  diff "$work/options" "$work/documented" >"$work/difference" || status=1
  result "README.md: options of CMake" "$status" "$work/difference"
}

# Blocks that name a file: each line is in it, spaces aside.
check_excerpts() {
  status=0 file=
  blocks cpp "$1" >"$work/blocks"
  : >"$work/missing"
  while IFS= read -r line; do
    case "$line" in
      "@@@ "*)
        file=${line#@@@ }
        if [ "$file" ]; then tr -d '[:space:]' <"$root/$file" >"$work/squeezed"; fi
        ;;
      *)
        [ "$file" ] || continue
        printf '%s' "$line" | tr -d '[:space:]' >"$work/line"
        [ -s "$work/line" ] || continue
        grep -qFf "$work/line" "$work/squeezed" || { echo "not in $file: $line" >>"$work/missing"; status=1; }
        ;;
    esac
  done <"$work/blocks"
  result "${1#"$root"/}: excerpts" "$status" "$work/missing"
}

# The other blocks, of all documents, in one translation unit: each a function of its own.
check_code() {
  for document; do blocks cpp "$document"; done >"$work/blocks"
  {
    echo '#include "context.hpp"'
    awk '/^@@@ / { use = $0 == "@@@ " } use && /^#include/' "$work/blocks" | sort -u
    awk '
      function close_block() { if (use) { print "}"; if (bench) print "#endif" } }
      /^@@@ / { close_block(); use = $0 == "@@@ "; bench = 0; first = 1; next }
      !use || /^#include/ { next }
      first && NF { first = 0; bench = /bench::/
                    if (bench) print "#if MOE_HAS_BENCHMARK"
                    print "void block" ++count "(MOE_README_CONTEXT) {" }
      { print "  " $0 }
      END { close_block() }' "$work/blocks"
  } >"$work/blocks.cpp"
  cat >"$work/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.25)
project(blocks LANGUAGES CXX)
set(MOE_IO ON)
add_subdirectory("$root" moe)
add_library(blocks OBJECT blocks.cpp)
target_link_libraries(blocks PRIVATE moe::io)
target_include_directories(blocks PRIVATE "$here" "$root/bench")
target_compile_options(blocks PRIVATE -fsyntax-only)
END
  status=0
  if command -v ninja >/dev/null 2>&1; then export CMAKE_GENERATOR=Ninja; fi
  { rm -rf "$work/build" && cmake -S "$work" -B "$work/build" "-DCMAKE_CXX_COMPILER=$compiler" &&
    cmake --build "$work/build" --verbose; } >"$work/log" 2>&1 || status=1
  result "C++ code" "$status" "$work/log"
}

# check_commands <document>: line by line, so that a block can be copied line by line.
check_commands() {
  name=${1#"$root"/}
  blocks sh "$1" | grep -v '^@@@ ' >"$work/commands" || return 0
  rm -rf "${work:?}/clone" "${work:?}/home"
  git clone -q "$root" "$work/clone"
  mkdir "$work/home"
  while IFS= read -r line; do
    case "$line" in
      "" | "#"*) continue ;;
      "apt-get install "*)
        # shellcheck disable=SC2046,SC2086  # lists
        if dpkg-query -W -f '${db:Status-Status}\n' ${line#apt-get install } >/dev/null 2>&1; then
          echo "there   $name: $line"
          continue
        fi
        line="$line -y"
        ;;
      *tests/run.sh* | *bench/run.sh* | *"ctest --preset"* | */moe_bench_gaussian | *"convergence_rates --full"*)
        if [ "$mode" != long ]; then
          echo "skipped $name: $line"
          continue
        fi
        ;;
    esac
    status=0
    (cd "$work/clone" && HOME="$work/home" sh -ec "$line") >"$work/log" 2>&1 </dev/null || status=1
    result "$name: $line" "$status" "$work/log"
  done <"$work/commands"
}

set -- "$root/README.md" "$root"/.github/*.md
for document; do
  check_links "$document"
  check_excerpts "$document"
done
check_options
[ "$(wc -l <"$root/README.md")" -le 200 ] && status=0 || status=1
result "README.md: at most 200 lines" "$status"
if [ "$mode" != quick ]; then
  check_code "$@"
  export CCACHE_DIR="${CCACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/ccache}"  # HOME is another one for the commands
  if command -v ccache >/dev/null 2>&1; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
  for document; do check_commands "$document"; done
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]

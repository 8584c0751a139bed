#!/bin/sh
# Installs moe and builds the project in consumer/ against it, in every way that users build theirs.
#   run.sh [--quick] <work directory> [<compiler>...]     default compilers: g++ clang++
# --quick: only find_package, only the first compiler, only the default instruction set.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
quick=
if [ "$1" = --quick ]; then quick=yes; shift; fi
mkdir -p "$1"
work=$(cd "$1" && pwd)
shift
[ $# -gt 0 ] || set -- g++ clang++
prefix=$work/prefix
if command -v ninja >/dev/null 2>&1; then export CMAKE_GENERATOR=Ninja; fi  # make may be missing
passed=0 failed=0

# check <name> <command...>: runs a command, shows its output only if it fails.
check() {
  name=$1
  shift
  if "$@" >"$work/log" 2>&1; then
    echo "ok      $name"
    passed=$((passed + 1))
  else
    echo "FAILED  $name"
    cat "$work/log"
    failed=$((failed + 1))
  fi
}

install_moe() {
  rm -rf "$prefix" "$work/moe"
  cmake -S "$root" -B "$work/moe" "-DCMAKE_INSTALL_PREFIX=$prefix" "-DCMAKE_CXX_COMPILER=$1" \
    -DMOE_INSTALL=ON -DMOE_TESTS=OFF -DMOE_EXAMPLES=OFF -DMOE_BENCH=OFF
  cmake --install "$work/moe"
}

# with_cmake <compiler> <flags> <cmake arguments...>
with_cmake() {
  compiler=$1 flags=$2
  shift 2
  rm -rf "$work/consumer"
  cmake -S "$here/consumer" -B "$work/consumer" "-DCMAKE_CXX_COMPILER=$compiler" "-DCMAKE_CXX_FLAGS=$flags" "$@" &&
    cmake --build "$work/consumer" && "$work/consumer/consumer"
}

# says <lines> <compiler> <flags> <cmake arguments...>: is there one line about the instruction set, or none?
says() {
  expected=$1 compiler=$2 flags=$3
  shift 3
  rm -rf "$work/consumer"
  cmake -S "$here/consumer" -B "$work/consumer" "-DCMAKE_CXX_COMPILER=$compiler" "-DCMAKE_CXX_FLAGS=$flags" "$@" \
    >"$work/says" 2>&1 || { cat "$work/says"; return 1; }
  lines=$(grep -c "moe::moe is compiled for .*moe::native" "$work/says") || true
  [ "$lines" -eq "$expected" ] || { cat "$work/says"; echo "$lines lines, expected $expected"; return 1; }
}

# native <-march option> <compiler> <cmake arguments...>: moe::native compiles for it, and what it makes runs.
native() {
  option=$1
  shift
  with_cmake "$1" "" -DLINK=moe::native "$@" && grep -e "$option " "$work/consumer/compile_commands.json"
}

# without_cmake <compiler> <flags>: what pkg-config says, Eigen as system headers as it is not clean of these warnings.
without_cmake() {
  includes=$(PKG_CONFIG_PATH="$prefix/share/pkgconfig" pkg-config --cflags moe | sed 's|-I/usr|-isystem /usr|g')
  # shellcheck disable=SC2086  # lists of options
  "$1" -std=c++20 $2 $includes -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror \
    "$here/consumer/main.cpp" "$here/consumer/second.cpp" -o "$work/plain" && "$work/plain"
}

# Different -m flags lay types out differently: passing them between such objects must be a link error.
mixed_instruction_sets() {
  includes=$(PKG_CONFIG_PATH="$prefix/share/pkgconfig" pkg-config --cflags moe)
  # shellcheck disable=SC2086
  "$1" -std=c++20 -march=x86-64 $includes -c "$here/consumer/main.cpp" -o "$work/main.o" &&
    "$1" -std=c++20 -march=x86-64-v3 $includes -c "$here/consumer/second.cpp" -o "$work/second.o" || return 1
  if "$1" "$work/main.o" "$work/second.o" -o "$work/mixed" 2>"$work/link"; then
    echo "objects of different instruction sets link"
    return 1
  fi
  grep "undefined reference to .busiest_expert" "$work/link"
}

check "install" install_moe "$1"
if [ "$quick" ]; then
  check "find_package, $1" with_cmake "$1" "" -DFROM=find_package "-DCMAKE_PREFIX_PATH=$prefix"
else
  for from in "find_package -DCMAKE_PREFIX_PATH=$prefix" "add_subdirectory -DMOE_SOURCE=$root" \
    "fetch_content -DFETCHCONTENT_SOURCE_DIR_MOE=$root"; do
    how=${from%% *} where=${from#* }
    check "$how says the instruction set" says 1 "$1" "" "-DFROM=$how" "$where"
    check "$how is silent with -mavx2" says 0 "$1" "-mavx2 -mfma" "-DFROM=$how" "$where"
    check "$how is silent with MOE_MARCH" says 0 "$1" "" "-DFROM=$how" "$where" -DMOE_MARCH=x86-64-v2
    check "$how, moe::native" native -m...*=native "$1" "-DFROM=$how" "$where"
    check "$how, moe::native with MOE_MARCH" native -march=x86-64-v2 "$1" "-DFROM=$how" "$where" -DMOE_MARCH=x86-64-v2
  done
  if command -v mpicxx >/dev/null 2>&1; then
    check "find_package, component mpi" with_cmake "$1" "" -DFROM=find_package "-DCMAKE_PREFIX_PATH=$prefix" \
      -DCOMPONENTS=mpi -DLINK=moe::mpi -DSOURCES=ranks.cpp
  fi
  for compiler; do
    for flags in "" -march=native; do
      what="$compiler${flags:+ $flags}"
      check "find_package, $what" with_cmake "$compiler" "$flags" -DFROM=find_package "-DCMAKE_PREFIX_PATH=$prefix"
      check "add_subdirectory, $what" with_cmake "$compiler" "$flags" -DFROM=add_subdirectory "-DMOE_SOURCE=$root"
      check "FetchContent, $what" with_cmake "$compiler" "$flags" -DFROM=fetch_content "-DFETCHCONTENT_SOURCE_DIR_MOE=$root"
      check "pkg-config, $what" without_cmake "$compiler" "$flags"
    done
    if [ "$(uname -m)" = x86_64 ]; then
      check "mixed instruction sets do not link, $compiler" mixed_instruction_sets "$compiler"
    fi
  done
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]

#!/bin/sh
# Builds and runs all tests, from any directory, on a bare Debian 12 too: packages that are missing are installed.
#   tests/run.sh            g++, and clang++ with AddressSanitizer and UndefinedBehaviorSanitizer
#   tests/run.sh --quick    g++ only
#   tests/run.sh --full     also clang++ as it optimises, ThreadSanitizer, benchmarks, all ways to use the library from
#                           other projects, and what the README tells to do; fuzzes for a minute instead of ten seconds
# Build directories go below ${MOE_BUILD_DIR:-build}, which git ignores. The last line is "N passed, M failed", counted
# over all stages; the exit status is 0 if nothing failed. Says beforehand how long it will take: about 80 minutes on
# two cores, 50 with --quick.
set -eu

mode=default
if [ $# -gt 1 ]; then set -- --help; fi
case "${1:-}" in
  "") ;;
  --quick | --full) mode=${1#--} ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac

unset CDPATH  # with it, cd prints
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/cmake/debian-packages.sh"
need g++ g++
need cmake cmake
need ninja ninja-build
wish ccache ccache
for library in libeigen3-dev libxsimd-dev catch2 nlohmann-json3-dev libcli11-dev; do need - $library; done
if [ "$mode" != quick ]; then
  need clang++ clang
  need - libclang-rt-dev  # the sanitizers and libFuzzer, which clang only recommends
  need - libomp-dev
  need - libbenchmark-dev
  wish mpicxx libopenmpi-dev
  wish mpirun openmpi-bin
fi
if [ "$mode" = full ]; then
  need pkg-config pkg-config
  need git git
fi

# minutes_of <stage>: with the cores of this machine and nothing compiled before. Core minutes of an AMD Zen 5 guest that
# others share; all are estimates from parts of a stage. Most of it is compiling: a second run takes a few minutes a
# stage.
minutes_of() {
  case "$1" in
    ci-gcc) core_minutes=100 ;;
    asan) core_minutes=60 ;;
    ci-clang) core_minutes=45 ;;
    tsan) core_minutes=50 ;;
    release) core_minutes=60 ;;
    packaging) core_minutes=6 ;;
    readme) core_minutes=12 ;;
  esac
  echo $(((core_minutes + jobs - 1) / jobs))
}

jobs=$(nproc)
fuzz_seconds=10
case "$mode" in
  quick) stages="ci-gcc" ;;
  default) stages="ci-gcc asan" ;;
  full) stages="ci-gcc asan ci-clang tsan release packaging readme" fuzz_seconds=60 ;;
esac
total=0
for name in $stages; do total=$((total + $(minutes_of "$name"))); done
echo "About $total min on $jobs core(s)${missing:+, after packages}; less where ccache or an earlier run has compiled:"
for name in $stages; do echo "  $name: about $(minutes_of "$name") min"; done
install_needed

build=${MOE_BUILD_DIR:-$root/build}
mkdir -p "$build"
build=$(cd "$build" && pwd)
export OMP_WAIT_POLICY=passive  # several tests share the cores: no spinning at barriers
if ccache -s >/dev/null 2>&1; then  # it is there, and can write somewhere
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_SLOPPINESS=pch_defines,time_macros
fi
passed=0 failed=0 summary=

# note <stage> <passed> <failed>
note() {
  passed=$((passed + $2))
  failed=$((failed + $3))
  summary="$summary  $1: $2 passed, $3 failed, $(($(date +%s) - started)) s
"
}

# stage <preset> <cmake arguments...>: configure, build, test. What does not build counts as one failure, and so does each
# test that cannot run for it.
stage() {
  preset=$1
  shift
  started=$(date +%s)
  echo "=== $preset: about $(minutes_of "$preset") min, in $build/$preset"
  if ! cmake -S "$root" --preset "$preset" -B "$build/$preset" "$@"; then
    note "$preset, configuration" 0 1
    return 0
  fi
  built=0
  # shellcheck disable=SC2086  # a setting or none
  env $large_pages cmake --build "$build/$preset" -j "$jobs" -- -k 0 || built=1
  log=$build/$preset/ctest.log
  $without_aslr ctest --test-dir "$build/$preset" --output-on-failure -j "$jobs" 2>&1 | tee "$log"
  # ctest's own summary: "97% tests passed, 2 tests failed out of 61"
  bad=$(sed -n 's/.*tests passed, \([0-9]*\) tests* failed out of [0-9]*.*/\1/p' "$log" | tail -n 1)
  all=$(sed -n 's/.*tests passed, [0-9]* tests* failed out of \([0-9]*\).*/\1/p' "$log" | tail -n 1)
  if [ "$built" -ne 0 ]; then note "$preset, build" 0 1; fi
  if [ "$all" ]; then note "$preset" $((all - bad)) "$bad"; else note "$preset (ran no tests)" 0 1; fi
}

# script_stage <folder of tests/> <arguments...>: its run.sh, whose last line is "N passed, M failed".
script_stage() {
  name=$1
  shift
  started=$(date +%s)
  echo "=== $name: about $(minutes_of "$name") min, in $build/$name"
  sh "$root/tests/$name/run.sh" "$@" 2>&1 | tee "$build/$name.log" || true
  counts=$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$build/$name.log" | tail -n 1)
  # shellcheck disable=SC2086  # two numbers, none if it broke off
  note "$name" ${counts:-0 1}
}

# works_with <compiler> <option>: does an empty program with this sanitizer run here?
works_with() {
  echo 'int main() {}' >"$build/probe.cpp"
  "$1" "$2" "$build/probe.cpp" -o "$build/probe" && $without_aslr "$build/probe" >/dev/null 2>&1
}

# can_fuzz: does clang++ come with libFuzzer?
can_fuzz() {
  echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' >"$build/probe.cpp"
  clang++ -fsanitize=fuzzer,address "$build/probe.cpp" -o "$build/probe" 2>/dev/null &&
    "$build/probe" -runs=1 >/dev/null 2>&1
}

without_aslr= large_pages=
# g++ takes a tenth less time where it collects its garbage late: it needs 2 GB for most files, and 7 GB for one.
late=
memory=$(awk '/^MemTotal/ { print int($2 / 1048576) }' /proc/meminfo 2>/dev/null || echo 0)
if [ "${memory:-0}" -ge $((jobs * 7)) ]; then late="--param ggc-min-expand=300 --param ggc-min-heapsize=1000000"; fi
if [ "$mode" = quick ]; then bench=OFF; else bench=ON; fi
stage ci-gcc "-DMOE_BENCH=$bench" "-DCMAKE_CXX_FLAGS=${CXXFLAGS:+$CXXFLAGS }$late"
if [ "$mode" != quick ]; then
  # The leak check needs ptrace, which some containers forbid.
  works_with clang++ -fsanitize=address || export ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0"
  # clang, as g++ takes three times as long over the sanitizers, and the memory of the machine. Where its malloc asks for
  # large pages, it meets a third of the page faults and takes 8% less time; g++ has memory of its own.
  large_pages=GLIBC_TUNABLES=glibc.malloc.hugetlb=1
  if can_fuzz; then stage asan -DMOE_FUZZ=ON "-DMOE_FUZZ_SECONDS=$fuzz_seconds"; else stage asan -DMOE_FUZZ=OFF; fi
  large_pages=
fi
if [ "$mode" = full ]; then
  stage ci-clang
  # The ThreadSanitizer of g++ 12 does not start where the kernel randomises more than 28 bits of addresses.
  works_with g++ -fsanitize=thread || without_aslr="setarch -R"
  stage tsan -DCMAKE_CXX_COMPILER=g++
  without_aslr=
  stage release -DCMAKE_CXX_COMPILER=g++ -DMOE_BENCH=ON
  script_stage packaging "$build/packaging" g++ clang++
  script_stage readme "$build/readme" g++
fi

echo
echo "Tests of moe, by stage:"
printf '%s' "$summary"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]

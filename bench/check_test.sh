#!/bin/sh
# Tests check.sh by programs that only say what they have measured: equal, 2% slower, 10% slower, and slower once.
set -eu
unset CDPATH  # with it, cd prints
check=$(cd "$(dirname "$0")" && pwd)/check.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/old/bench" "$work/new/bench"

# program DIRECTORY LINES: a benchmark that prints these lines, $runs being how often it has run.
program() {
  {
    printf '#!/bin/sh\nruns=$(cat "$0.runs" 2>/dev/null || echo 0)\necho $((runs + 1)) >"$0.runs"\n'
    printf 'echo name,iterations,real_time,cpu_time\n%s\n' "$2"
  } >"$work/$1/bench/fake_bench"
  chmod +x "$work/$1/bench/fake_bench"
}
# verdict STATUS LINE: the last line, after an exit with this status.
verdict() {
  status=0
  MOE_CHECK_TURNS=3 sh "$check" "$work/old" "$work/new" fake_bench . >"$work/out" || status=$?
  if [ "$status" -ne "$1" ] || [ "$(tail -n 1 "$work/out")" != "$2" ]; then
    cat "$work/out"
    echo "failed: exit status $status, expected $1 and '$2'" >&2
    exit 1
  fi
}

program old 'echo "\"a/1\",10,100,90,us"; echo "\"b/1\",10,200,90,us"'
program new 'echo "\"a/1\",10,102,500,us"; echo "\"b/1\",10,150,90,us"'
verdict 0 "2 benchmarks, 0 slower by more than 3%"
program new 'echo "\"a/1\",10,110,90,us"; echo "\"b/1\",10,200,90,us"'
verdict 1 "2 benchmarks, 1 slower by more than 3%"
grep -q '^ 1.100 .* a/1  SLOWER$' "$work/out"
rm -f "$work/new/bench/fake_bench.runs"
program new 'if [ $runs -lt 3 ]; then t=110; else t=100; fi; echo "\"a/1\",10,$t,90,us"; echo "\"b/1\",10,200,90,us"'
verdict 0 "2 benchmarks, 0 slower by more than 3%"
program new 'echo "\"a/1\",10,100,90,us"; exit 1'
if sh "$check" "$work/old" "$work/new" fake_bench . >/dev/null 2>&1; then
  echo "failed: the new program failed, and nobody said so" >&2
  exit 1
fi
program new 'echo "\"a/1\",10,100,90,us"'
if sh "$check" "$work/old" "$work/new" fake_bench . >/dev/null 2>&1; then
  echo "failed: a benchmark is missing, and nobody said so" >&2
  exit 1
fi
program old ':'
program new ':'
if sh "$check" "$work/old" "$work/new" fake_bench . >/dev/null 2>&1; then
  echo "failed: nothing was measured, and nobody said so" >&2
  exit 1
fi

#!/bin/sh
# Pairs two builds: runs the same benchmarks of both in turns, and fails where the new one takes over 3% longer.
#   bench/check.sh OLD NEW                    two build directories, as build/bench; programs that both have
#   bench/check.sh OLD NEW PROGRAM [FILTER]   one of them, as gate_top_k_bench, with what its --benchmark_filter takes
# A turn runs old and new, or new and old; the verdict of a benchmark is the median of the ratios within its turns
# (MOE_CHECK_TURNS of them, 7 unless set). What is beyond 3% is measured anew up to two times, as a machine may have
# been busy, and has to stay beyond. Prints a line per benchmark, exits with 1 if one is slower, with 2 if none ran, a
# program failed, or a benchmark of OLD is missing in NEW.
set -eu

case $# in
  2 | 3 | 4) ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
old=$1 new=$2
programs=${3:-gate_top_k_bench routing_plan_bench kernel_combine_bench kernel_dispatch_bench layer_moe_layer_bench}
filter=${4:-/(small|experts:64/k:(8|16|32))/(uniform/)?tokens:(1|64|512)/}
turns=${MOE_CHECK_TURNS:-7}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# run_one DIRECTORY PROGRAM FILTER LABEL: lines of label, name, time.
run_one() {
  "$1/bench/$2" --benchmark_format=csv --benchmark_min_time=0.05 "--benchmark_filter=$3" >"$work/csv" 2>"$work/errors" || {
    cat "$work/errors" >&2
    echo "bench/check.sh: $1/bench/$2 failed" >&2
    exit 2
  }
  awk -v label="$4" '
    /^"/ { split($0, part, "\""); n = split(part[3], field, ","); if (n > 3 && field[3] > 0) print label, part[2], field[3] }' \
    "$work/csv" >>"$work/times"
}

# compare PROGRAM FILTER: fills times and verdicts: name, old time, new time, ratio.
compare() {
  : >"$work/times"
  turn=0
  while [ "$turn" -lt "$turns" ]; do
    if [ $((turn % 2)) -eq 0 ]; then
      run_one "$old" "$1" "$2" "old $turn"
      run_one "$new" "$1" "$2" "new $turn"
    else
      run_one "$new" "$1" "$2" "new $turn"
      run_one "$old" "$1" "$2" "old $turn"
    fi
    turn=$((turn + 1))
  done
  awk '
    function median(list, count,   i, j, x) {
      for (i = 2; i <= count; ++i) {
        x = list[i]
        for (j = i - 1; j > 0 && list[j] > x; --j) list[j + 1] = list[j]
        list[j + 1] = x
      }
      return count % 2 ? list[(count + 1) / 2] : (list[count / 2] + list[count / 2 + 1]) / 2
    }
    { time[$1, $2, $3] = $4; if (!($3 in seen)) { seen[$3] = 1; names[++count] = $3 } if ($2 > last) last = $2 }
    END {
      for (i = 1; i <= count; ++i) {
        n = 0
        for (t = 0; t <= last; ++t)
          if ((("old", t, names[i]) in time) && (("new", t, names[i]) in time)) {
            ++n
            a[n] = time["old", t, names[i]]
            b[n] = time["new", t, names[i]]
            r[n] = b[n] / a[n]
          }
        if (n > 0) print names[i], median(a, n), median(b, n), median(r, n)
        else if (("old", 0, names[i]) in time) { print "bench/check.sh: " names[i] " is missing in the new build" > "/dev/stderr"; exit 2 }
      }
    }' "$work/times" >"$work/verdicts"
}

compared=0 slower=0
for program in $programs; do
  if ! [ -x "$old/bench/$program" ] || ! [ -x "$new/bench/$program" ]; then
    echo "$program: not in both builds" >&2
    continue
  fi
  compare "$program" "$filter"
  cp "$work/verdicts" "$work/all"
  round=0
  while [ "$round" -lt 2 ]; do
    again=$(awk '$4 > 1.03 { printf "%s^%s$", n++ ? "|" : "", $1 }' "$work/all")
    [ -n "$again" ] || break
    compare "$program" "$again"
    awk 'NR == FNR { anew[$1] = $0; next } { print $1 in anew ? anew[$1] : $0 }' "$work/verdicts" "$work/all" >"$work/next"
    mv "$work/next" "$work/all"
    round=$((round + 1))
  done
  awk '{ printf "%6.3f  %12g -> %-12g %s%s\n", $4, $2, $3, $1, ($4 > 1.03 ? "  SLOWER" : "") }' "$work/all"
  compared=$((compared + $(wc -l <"$work/all")))
  slower=$((slower + $(awk '$4 > 1.03' "$work/all" | wc -l)))
done
if [ "$compared" -eq 0 ]; then
  echo "bench/check.sh: nothing was measured in both builds" >&2
  exit 2
fi
echo "$compared benchmarks, $slower slower by more than 3%"
[ "$slower" -eq 0 ]

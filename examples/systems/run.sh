# shellcheck shell=sh disable=SC2154
# Sourced by examples/run.sh --systems, which sets root and build, with its arguments: compiles and runs the pages, and
# makes one table of the lines that they end with. Sets failed: 0 if every claim holds. A page's last line is
#   claim NAME: NUMBER in [LOW, HIGH] ok|quick|FAIL | DEVIATION | arXiv number | header | what the number is
failed=0 own_seeds=yes names='' options=''
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) options="$options --quick" own_seeds='' ;;
    --seed) options="$options --seed ${2:?--seed: a number}" own_seeds=''; shift ;;
    -*) echo "examples/run.sh --systems: unknown option $1, expected --quick, --seed N or names of pages" >&2; exit 2 ;;
    *)
      if [ ! -e "$root/examples/systems/$1.cpp" ]; then
        echo "examples/run.sh --systems: there is no examples/systems/$1.cpp" >&2
        exit 2
      fi
      names="$names $1" ;;
  esac
  shift
done
every=
if [ -z "$names" ]; then
  every=yes
  for page in "$root"/examples/systems/*.cpp; do names="$names $(basename "$page" .cpp)"; done
  if [ "$own_seeds" ]; then rm -rf cache; fi  # what the table says is of models that this library has trained
fi

targets=
for name in $names; do targets="$targets system_$name"; done
# shellcheck disable=SC2086  # a list
watched "compiling" cmake --build "$build" --target $targets

# run_page <name>: shows what it prints, and keeps its claim and its seconds in the file `claims`.
run_page() {
  since=$(date +%s)
  status=0
  # shellcheck disable=SC2016,SC2086  # for the inner shell; a list
  watched "$1" sh -c 'out=$1; shift; exec "$@" >"$out"' sh "$1.txt" "$build/examples/systems/$1" --cache cache $options ||
    status=$?
  echo "=== $1"
  cat "$1.txt"
  claim=$(sed -n 's/^claim //p' "$1.txt" | tail -n 1)
  if [ "$status" -ne 0 ]; then failed=1; fi
  # A page that broke off has made no claim, or one that does not count.
  if [ -z "$claim" ] || { [ "$status" -ne 0 ] && [ "$status" -ne 1 ]; }; then
    claim="$1: none in [, ] FAIL |  | - | - | it ended with status $status"
  fi
  echo "$claim | $(($(date +%s) - since))" >>claims
}

: >claims
for name in $names; do run_page "$name"; done

echo
awk -F ' [|] ' '
  { split($1, part, /: | in \[|\] /)
    printf "%-18s %-11s %-34s %10s  [%s]  %4s s  %s\n", part[1], $3, $4, part[2], part[3], $6, part[4] }' claims

if [ "$every" ] && [ "$own_seeds" ] && [ "$failed" -eq 0 ]; then
  {
    cat <<END
# Systems of the literature, a page each

Each page is a program to copy from: what a paper does, on a problem that takes seconds, beside baselines, and a number that
has to come out. \`sh examples/run.sh --systems\` compiles and runs them all and writes this table; \`--systems thor\` runs
one, \`--seed N\` with other seeds. Numbers are means of five seeds, with their standard deviations in parentheses; a band is
what the page accepts. What did not come out as the paper has it, a page prints and does not hide.

| page | paper | where | number | mean | band | seconds |
|---|---|---|---|---:|---|---:|
END
    awk -F ' [|] ' '
      { split($1, part, /: | in \[|\] /)
        low = part[3]; high = part[3]; sub(/,.*/, "", low); sub(/.*, /, "", high)
        band = low == "-inf" ? "at most " high : high == "inf" ? "at least " low : low " to " high
        printf "| [%s](%s.cpp) | [%s](https://arxiv.org/abs/%s) | [%s](../../include/%s) | %s | %s (%s) | %s | %s |\n",
               part[1], part[1], $3, $3, $4, $4, $5, part[2], $2, band, $6 }' claims
    echo
    sh "$root/examples/systems/survey.sh" || failed=1
  } >"$root/examples/systems/README.md"
  echo "Written: examples/systems/README.md"
fi

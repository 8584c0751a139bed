# shellcheck shell=sh
# sh examples/systems/survey.sh [--check]: the table of what serves which branch of the survey, from survey.txt and the
# code; with --check fails unless examples/systems/README.md has it. Refuses headers that are not there, and those that
# neither a page nor a test includes.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
table() {
  cat <<END
## By the branches of a survey of inference

Which header serves which optimisation of inference of the survey [2412.14219](https://arxiv.org/abs/2412.14219), and the
pages above that include it or claim something of it (\`sh examples/systems/survey.sh\`). Hardware of its own (near-memory computing, FPGAs) is not
here; what runs on processors is in \`core/simd*.hpp\` and \`kernel/\`.

| branch | what it does | header | pages |
|---|---|---|---|
END
  before=
  while IFS='|' read -r branch what header; do
    case "$branch" in '' | '#'*) continue ;; esac
    if [ ! -e "$root/include/moe/$header" ]; then
      echo "survey.sh: there is no include/moe/$header" >&2
      return 1
    fi
    pages=$(cd "$root/examples/systems" && grep -l "[<\"]moe/${header}[>\"]" ./*.cpp | sed 's|^./||; s|[.]cpp$||' |
      awk '{ printf "%s[%s](%s.cpp)", (NR > 1 ? ", " : ""), $1, $1 }')
    if [ -z "$pages" ] && ! grep -rqs "include \"moe/$header\"" "$root/tests"; then
      echo "survey.sh: no page and no test includes moe/$header" >&2
      return 1
    fi
    shown=$branch
    if [ "$branch" = "$before" ]; then shown=''; fi
    before=$branch
    echo "| $shown | $what | [moe/$header](../../include/moe/$header) | $pages |"
  done <"$root/examples/systems/survey.txt"
}
found=$(table) || exit 1
if [ "${1:-}" != --check ]; then
  printf '%s\n' "$found"
elif [ "$(sed -n '/^## By the branches/,$p' "$root/examples/systems/README.md")" != "$found" ]; then
  echo "survey.sh: examples/systems/README.md has another table, expected what sh examples/systems/survey.sh prints" >&2
  exit 1
fi

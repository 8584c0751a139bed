# shellcheck shell=sh
# Sourced by the scripts that build.

# watched <what> <command...>: runs a command that may take a while. It gets no terminal: one that reads from it, or
# changes its settings, as apt-get does, would be stopped for ever under timeout(1) or in the background. Its output goes
# to a log, which is shown if it fails; meanwhile stderr counts the seconds and shows the last line of the log.
watched() {
  watched_what=$1
  shift
  watched_log=$(mktemp)
  watched_since=$(date +%s)
  show_clock &
  watched_clock=$!
  watched_status=0
  "$@" >"$watched_log" 2>&1 </dev/null || watched_status=$?
  kill "$watched_clock" 2>/dev/null || true
  wait "$watched_clock" 2>/dev/null || true
  if [ -t 2 ]; then printf '\r\033[K' >&2; fi
  if [ "$watched_status" -ne 0 ]; then cat "$watched_log" >&2; fi
  rm -f "$watched_log"
  echo "$watched_what: $([ "$watched_status" -eq 0 ] || echo "failed after ")$(($(date +%s) - watched_since)) s" >&2
  return "$watched_status"
}

# A line that is written over every second on a terminal; elsewhere a new one every ten. Ends with the script.
show_clock() {
  if [ -t 2 ]; then pause=1 begin='\r\033[K' end=''; else pause=10 begin='' end='\n'; fi
  while sleep "$pause" >/dev/null 2>&1 && kill -0 "$$" 2>/dev/null; do
    # shellcheck disable=SC2059  # escape sequences
    printf "$begin%s: %s s  %s$end" "$watched_what" "$(($(date +%s) - watched_since))" \
      "$(grep -v 'Re-checking glob' "$watched_log" | tail -n 1 | tr -cd '[:print:]' | cut -c1-50)" >&2
  done
}

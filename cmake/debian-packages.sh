# shellcheck shell=sh
# Sourced by the scripts that build: need <command or -> <package> notes what is missing, install_needed installs it.
missing=

# A command counts as there wherever it comes from; "-" stands for a library, which is looked up as a package.
need() {
  if [ "$1" != - ]; then
    command -v "$1" >/dev/null 2>&1 && return 0
  elif command -v dpkg-query >/dev/null 2>&1; then
    dpkg-query -W -f '${Status}' "$2" 2>/dev/null | grep -q 'ok installed' && return 0
  else
    return 0  # another system: CMake finds out, and downloads
  fi
  missing="$missing $2"
}

install_needed() {
  [ "$missing" ] || return 0
  as_root=
  if ! command -v apt-get >/dev/null 2>&1 ||
    { [ "$(id -u)" -ne 0 ] && ! { as_root="sudo -n"; sudo -n true 2>/dev/null; }; }; then
    echo "Please install these Debian packages, or what is the same on this system, and start again:"
    echo "  apt-get install$missing"
    exit 1
  fi
  echo "Installing$missing"
  $as_root apt-get update -q || echo "apt-get update failed; going on with the lists as they are"
  # shellcheck disable=SC2086  # a list
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
}

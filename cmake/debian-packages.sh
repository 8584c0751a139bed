# shellcheck shell=sh
# Sourced by the scripts that build, which set root: need <command or -> <package> notes what is missing, install_needed
# installs it.
# shellcheck source=cmake/progress.sh
. "${root:?}/cmake/progress.sh"
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

# How long it takes is a matter of the network: apt-get says how much it is.
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
  apt="$as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300"
  # shellcheck disable=SC2086  # lists
  {
    watched "apt-get update" $apt update || echo "apt-get update failed; going on with the lists as they are"
    $apt install --assume-no --no-install-recommends $missing 2>/dev/null </dev/null |
      sed -n -e 's/.* \([0-9]* newly installed\).*/  with what they need \1/p' -e 's/^Need to get /  to download: /p'
    watched "apt-get install" $apt install -y --no-install-recommends $missing
  }
}

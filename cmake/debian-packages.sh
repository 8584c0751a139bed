# shellcheck shell=sh
# Sourced by the scripts that build, which set root: need <command or -> <package> notes what is missing, wish <command>
# <package> what would only help, install_needed installs both.
# shellcheck source=cmake/progress.sh
. "${root:?}/cmake/progress.sh"
missing=
wished=

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

# Nobody is asked for what is only wished.
wish() {
  if ! command -v "$1" >/dev/null 2>&1 && can_install; then wished="$wished $2"; fi
}

# can_install: also sets as_root, what apt-get has to be called with.
can_install() {
  as_root=
  command -v apt-get >/dev/null 2>&1 || return 1
  [ "$(id -u)" -eq 0 ] || { as_root="sudo -n" && sudo -n true 2>/dev/null; }
}

# How long it takes is a matter of the network: apt-get says how much it is.
install_needed() {
  [ "$missing$wished" ] || return 0
  if ! can_install; then
    echo "Please install these Debian packages, or what is the same on this system, and start again:"
    echo "  apt-get install$missing"
    exit 1
  fi
  echo "Installing$missing$wished"
  apt="$as_root env DEBIAN_FRONTEND=noninteractive LC_ALL=C apt-get -q -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300"
  # shellcheck disable=SC2086  # lists
  watched "apt-get update" $apt update || echo "apt-get update failed; going on with the lists as they are"
  # shellcheck disable=SC2086  # lists
  if [ "$missing" ]; then install_packages $missing; fi
  # shellcheck disable=SC2086  # lists
  if [ "$wished" ]; then install_packages $wished || echo "going on without$wished"; fi
}

# install_packages <package>...
install_packages() {
  # shellcheck disable=SC2086  # a list
  $apt install --assume-no --no-install-recommends "$@" 2>/dev/null </dev/null |
    sed -n -e 's/.* \([0-9]* newly installed\).*/  with what they need \1/p' -e 's/^Need to get /  to download: /p'
  # shellcheck disable=SC2086  # a list
  watched "apt-get install" $apt install -y --no-install-recommends "$@"
}

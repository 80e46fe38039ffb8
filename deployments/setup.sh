#!/usr/bin/env bash
# Makes .venv with the pinned dependencies; called by `make setup`. What is missing is one clear line,
# before anything is downloaded. uv installs, with pip's own settings of indexes; if it cannot, pip does.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "make setup: $*" >&2; exit 2; }

# requires-python in pyproject.toml; 3.13: OpenCC 1.1.9 has no wheel for it
supported() { "$1" -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info[:3] < (3, 13))' 2>/dev/null; }

python="${STEEL_PYTHON:-}"
if [ -z "$python" ]; then
  for candidate in python3.11 python3.12 python3 python; do
    if command -v "$candidate" >/dev/null && supported "$candidate"; then
      python="$candidate"
      break
    fi
  done
fi
[ -n "$python" ] || fail "no Python 3.11 or 3.12 on the PATH (its path may be given as STEEL_PYTHON=…)"
supported "$python" || fail "$python is not Python 3.11 (from 3.11.5) or 3.12"
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python cannot make virtual environments (Debian: apt-get install python$version-venv)"
"$python" -c 'import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' ||
  fail "Python's headers are missing: no Python.h (Debian: apt-get install python$version-dev)"
command -v g++ >/dev/null || fail "no g++ on the PATH (Debian: apt-get install g++)"

[ -x .venv/bin/python ] || "$python" -m venv .venv
supported .venv/bin/python ||
  fail ".venv holds another Python than 3.11 or 3.12: delete it and run make setup again"

# pip repeats one warning a package for each folder of its settings that is not there
by_pip() {
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock "$@" \
    2> >(grep -v '^WARNING: Location .* is ignored' >&2)
}

# a setting of pip: from the environment, else from its files
setting() {
  local variable="PIP_${1^^}"
  variable="${variable//-/_}"
  if [ -n "${!variable:-}" ]; then
    echo "${!variable}"
  else
    .venv/bin/python -m pip config get "install.$1" 2>/dev/null ||
      .venv/bin/python -m pip config get "global.$1" 2>/dev/null || true
  fi | tr '\n' ' ' | sed 's/ *$//'
}

# where pip would look, in uv's words; pip takes the best version of all indexes
by_uv() (
  index="$(setting index-url)" extra="$(setting extra-index-url)" links="$(setting find-links)"
  constraint="$(setting constraint)" hosts="$(setting trusted-host)" cert="$(setting cert)"
  [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
  [ -z "$extra" ] || export UV_INDEX="${UV_INDEX:-$extra}"
  [ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-${links// /,}}"
  [ -z "$constraint" ] || export UV_CONSTRAINT="${UV_CONSTRAINT:-$constraint}"
  [ -z "$hosts" ] || export UV_INSECURE_HOST="${UV_INSECURE_HOST:-$hosts}"
  [ -z "$cert" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$cert}"
  case "$(setting no-index)" in 1 | true | yes | on) export UV_NO_INDEX=1 ;; esac
  export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}" UV_NO_CONFIG=1 UV_PYTHON_DOWNLOADS=never
  .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode \
    -r requirements.txt -c requirements.lock
)

echo "make setup: installing the pinned dependencies into .venv (some minutes, once)"
if [ "${STEEL_INSTALLER:-uv}" = pip ]; then
  by_pip -r requirements.txt
else
  # torch by pip, whose settings may point to a wheel for CPUs; uv then leaves it as it is
  by_pip uv "$(grep -o '^torch==[^ ]*' requirements.txt)"
  if ! by_uv 2> .venv/uv.log; then
    echo "make setup: uv could not install (.venv/uv.log); pip goes on" >&2
    by_pip -r requirements.txt
  fi
fi

# shells that activate .venv find this clone's servers (the mlflow command reads only the environment)
if ! grep -q 'steel/env' .venv/bin/activate; then
  cat >> .venv/bin/activate <<'LINES'

# Steel: the addresses of this clone's servers, written by `make up`
if [ -f "$VIRTUAL_ENV/../.steel/env" ]; then . "$VIRTUAL_ENV/../.steel/env"; fi
LINES
fi
touch .venv/.installed

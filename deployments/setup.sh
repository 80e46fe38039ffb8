#!/usr/bin/env bash
# Makes .venv with the pinned dependencies; called by `make setup`. What is missing is one clear line,
# before anything is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "make setup: $*" >&2; exit 2; }

python="${STEEL_PYTHON:-}"
if [ -z "$python" ]; then
  for candidate in python3.11 python3 python; do
    if command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      python="$candidate"
      break
    fi
  done
fi
[ -n "$python" ] || fail "no Python 3.11 on the PATH (its path may be given as STEEL_PYTHON=…)"
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
  fail "$python is not Python 3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python cannot make virtual environments (Debian: apt-get install python3.11-venv)"
"$python" -c 'import pathlib, sys, sysconfig
sys.exit(not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").exists())' ||
  fail "Python's headers are missing: no Python.h (Debian: apt-get install python3.11-dev)"
command -v g++ >/dev/null || fail "no g++ on the PATH (Debian: apt-get install g++)"

[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' ||
  fail ".venv holds another Python than 3.11: delete it and run make setup again"

echo "make setup: installing the pinned dependencies into .venv (some minutes, once)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c requirements.lock

# shells that activate .venv find this clone's servers (the mlflow command reads only the environment)
if ! grep -q 'steel/env' .venv/bin/activate; then
  cat >> .venv/bin/activate <<'LINES'

# Steel: the addresses of this clone's servers, written by `make up`
if [ -f "$VIRTUAL_ENV/../.steel/env" ]; then . "$VIRTUAL_ENV/../.steel/env"; fi
LINES
fi
touch .venv/.installed

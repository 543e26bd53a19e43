#!/usr/bin/env bash
# Installs medseg and its tools into .venv, then lints, type-checks and tests: bash scripts/test.sh [pytest arguments], from any folder.
# The slow tests: bash scripts/test.sh -m slow. One file: bash scripts/test.sh tests/test_cli.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up dev "$ROOT[dev]"
cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"
say "ruff check"
ruff check .
say "mypy"
mypy
say "pytest $*"
python -m pytest "$@"

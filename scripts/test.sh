#!/usr/bin/env bash
# Installs medseg and its tools into .venv, then lints, checks types and tests: bash scripts/test.sh [pytest arguments]
# From any folder. The long tests: bash scripts/test.sh -m slow. One file: bash scripts/test.sh tests/test_cli.py
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up dev "$ROOT[dev]"
cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"

failed=()
step() {
    say "$*"
    "$@" || failed+=("$1")
}
step ruff check .
step mypy
step pytest "$@"

if [ "${#failed[@]}" -gt 0 ]; then
    say "failed: ${failed[*]}"
    exit 1
fi

#!/usr/bin/env bash
# Installs medseg into .venv and runs its demo: bash scripts/quickstart.sh [key=value …], from any folder.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
set_up core "$ROOT"
say "medseg demo $*"
exec medseg demo "$@"

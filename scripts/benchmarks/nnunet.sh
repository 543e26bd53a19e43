#!/usr/bin/env bash
# Installs nnU-Net v2, the peer of the benchmarks, into a .venv of its own: bash scripts/benchmarks/nnunet.sh, from any folder.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/../setup.sh"
VENV="$HERE/.venv"
if "$VENV/bin/nnUNetv2_plan_and_preprocess" --help >/dev/null 2>&1; then
    say "nnU-Net is there: $VENV"
    exit
fi
PYTHON="$(find_python)" || exit 2
say "Installing nnU-Net into $VENV"
"$PYTHON" -m venv --clear "$VENV"
pip() { "$VENV/bin/python" -m pip --quiet "$@"; }
# dynamic-network-architectures asks for timm, thus for torchvision, which does not import beside a CPU-only torch. Only its
# transformers use them; what plans and preprocesses does not. So these two come without their requirements,
pip install --no-deps nnunetv2==2.8.1 dynamic-network-architectures==0.4.4
# and then everything they require but timm (pip will remark that it is missing), in medseg's versions where both need it.
"$VENV/bin/python" - >"$VENV/requirements.txt" <<'PYTHON'
import re
from importlib.metadata import requires

wanted = [r for package in ("nnunetv2", "dynamic-network-architectures") for r in requires(package) or [] if "extra" not in r]
print("\n".join(r for r in wanted if re.split(r"[^\w-]", r)[0] not in ("timm", "dynamic-network-architectures")))
PYTHON
pip install -c "$HERE/../constraints.txt" -r "$VENV/requirements.txt"
"$VENV/bin/nnUNetv2_plan_and_preprocess" --help >/dev/null
say "nnU-Net is ready"

# Makes or reuses .venv in the repository; sourced by quickstart.sh and test.sh, which then stand in it.
# Call: set_up <name of the stamp> <what to install>. Nothing but Python ≥ 3.11 and a package index is needed.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do
        if new_enough "$candidate" && "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    say "medseg needs Python 3.11 or newer, with its venv module. Found: $(command -v python3 && python3 --version || echo none)"
    say "Install one (Debian and Ubuntu: apt install python3 python3-venv; macOS: brew install python), then run this again."
    return 2
}

# What an installation depends on: where it lies, its Python, the pinned versions and the project's own list.
fingerprint() {
    "$VENV/bin/python" - "$ROOT" "$1" <<'PYTHON'
import hashlib, pathlib, sys
root, what = pathlib.Path(sys.argv[1]), sys.argv[2]
parts = [str(root), what, sys.version, *((root / f).read_text("utf-8") for f in ("pyproject.toml", "scripts/constraints.txt"))]
sys.stdout.write(hashlib.sha256("\0".join(parts).encode()).hexdigest())
PYTHON
}

set_up() {
    local stamp="$VENV/.installed-$1" what="$2" python quiet
    if ! new_enough "$VENV/bin/python"; then
        python="$(find_python)" || exit 2
        say "Making .venv with $("$python" --version) ($python)"
        "$python" -m venv --clear "$VENV"
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" != "$(fingerprint "$what")" ]; then
        say "Installing medseg and what it needs into .venv (some minutes the first time)"
        rm -f "$stamp"
        [ -t 2 ] && quiet=() || quiet=(-qq)  # pip's progress is for people
        "$VENV/bin/python" -m pip install "${quiet[@]}" -c "$ROOT/scripts/constraints.txt" -e "$what"
        fingerprint "$what" >"$stamp"
    fi
    # shellcheck disable=SC1091
    source "$VENV/bin/activate"
}

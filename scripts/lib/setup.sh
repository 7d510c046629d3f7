# Shared by the scripts: a Python that is new enough, a virtual environment from the lock, and Debian packages where
# they may be installed. Source it; it changes nothing by itself. Respects PIP_* settings and never names a registry.
#
#   ensure_venv runtime|dev    makes or updates $VENV (default .venv in the repository)
#   ensure_tool COMMAND PACKAGE PURPOSE    true if the command is there or could be installed; says what is skipped
#
# Environment: PYTHON (interpreter to use), VENV (folder of the virtual environment).

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
VENV="${VENV:-$ROOT/.venv}"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "== $*" >&2; }
fail() { printf '%s\n' "error: $1" >&2; [[ -z "${2:-}" ]] || printf '%s\n' "fix: $2" >&2; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

apt_install() {
    command -v apt-get >/dev/null || return 1
    local as_root=()
    if [[ "$(id -u)" != 0 ]]; then
        command -v sudo >/dev/null && sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    say "installing the Debian packages $*"
    local install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@")
    "${as_root[@]}" "${install[@]}" >/dev/null 2>&1 && return 0
    "${as_root[@]}" apt-get update -qq >/dev/null 2>&1 || true
    "${as_root[@]}" "${install[@]}" >/dev/null 2>&1
}

ensure_tool() {
    command -v "$1" >/dev/null && return 0
    apt_install "$2" && command -v "$1" >/dev/null && return 0
    say "skipped: $3 (needs the command '$1' from the Debian package $2, and root or sudo to install it)"
    return 1
}

ensure_venv() {
    local lock="$ROOT/requirements.lock" python stamp wanted
    [[ "$1" == runtime ]] || lock="$ROOT/requirements-dev.lock"
    python="$(find_python)" || { apt_install python3 python3-venv && python="$(find_python)"; } ||
        fail "no Python 3.11 or newer was found" "install python3 and python3-venv, or set PYTHON"
    stamp="$VENV/.meshnode-stamp"
    wanted="$(cat "$lock" "$ROOT/pyproject.toml" | sha256sum | cut -d' ' -f1)"
    # A dev environment holds everything that the runtime one does.
    if [[ -x "$VENV/bin/meshnode" && -f "$stamp" ]] && is_new_enough "$VENV/bin/python"; then
        local have
        have="$(cat "$stamp")"
        [[ "$have" == "$1 $wanted" || ( "$1" == runtime && "$have" == "dev "* && -n "$(current_dev "$have")" ) ]] && return 0
    fi
    say "setting up $VENV with $("$python" --version)"
    rm -f "$stamp"
    if [[ ! -x "$VENV/bin/python" ]] || ! is_new_enough "$VENV/bin/python"; then
        rm -rf "$VENV"
        "$python" -m venv "$VENV" 2>/dev/null || { rm -rf "$VENV"; apt_install python3-venv && "$python" -m venv "$VENV"; } ||
            fail "$python cannot make virtual environments" "install python3-venv"
    fi
    # setuptools first and no build isolation after it: everything that is downloaded is held to a hash in the lock.
    awk '/^setuptools==/ {on = 1; print; next} /^[a-z]/ {on = 0} on' "$lock" > "$VENV/.setuptools.lock"
    "$VENV/bin/python" -m pip install -qq --require-hashes -r "$VENV/.setuptools.lock"
    "$VENV/bin/python" -m pip install -qq --require-hashes --no-build-isolation -r "$lock"
    "$VENV/bin/python" -m pip install -qq --no-deps --no-build-isolation --editable "$ROOT"
    printf '%s\n' "$1 $wanted" > "$stamp"
}

current_dev() {
    local wanted
    wanted="$(cat "$ROOT/requirements-dev.lock" "$ROOT/pyproject.toml" | sha256sum | cut -d' ' -f1)"
    [[ "$1" != "dev $wanted" ]] || printf 'yes\n'
}

setup_runtime() { ensure_venv runtime; }

#!/usr/bin/env bash
# Make the environment that requirements/requirements.lock describes and print its interpreter as the last line.
#   - an active virtual environment (VIRTUAL_ENV) or SA2VA_DPO_VENV is used as it is, else .venv in this repository is made;
#   - SA2VA_DPO_STACK=next takes requirements/next.lock instead (transformers 5), into .venv-next or SA2VA_DPO_VENV with "-next"
#     behind it: never into an active environment, which holds the other stack;
#   - only what is missing or of another version is installed, so a complete environment needs no network.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

die() { echo "error: $*" >&2; exit 2; }

case "${SA2VA_DPO_STACK:-}" in
    '') lock="$root/requirements/requirements.lock"; venv="${VIRTUAL_ENV:-${SA2VA_DPO_VENV:-$root/.venv}}" ;;
    next) lock="$root/requirements/next.lock"; venv="${SA2VA_DPO_VENV:-$root/.venv}-next" ;;
    *) die "SA2VA_DPO_STACK is '$SA2VA_DPO_STACK': leave it unset (transformers 4.57) or set it to next (transformers 5)" ;;
esac
python="$venv/bin/python"
if [ ! -x "$python" ]; then
    base=""
    for candidate in python3.11 python3 python; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            base="$candidate"; break
        fi
    done
    [ -n "$base" ] || die "the lock file needs Python 3.11 and none was found on PATH: install python3.11 and run this again"
    echo "making the virtual environment $venv" >&2
    "$base" -m venv "$venv" >&2 || die "could not make $venv: install the venv module of Python 3.11 (python3.11-venv)"
fi
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
    || die "$python is not Python 3.11, for which the lock file was resolved: deactivate this environment, or activate one with Python 3.11"

if ! "$python" "$root/tools/check_env.py" "$lock" >&2; then
    echo "installing the packages named above (hash-locked; a few minutes the first time)" >&2
    # uv looks for a terminal by itself. pip's bar would fill a pipe.
    bar=off
    if [ -t 2 ]; then bar=on; fi
    # DeepSpeed builds its kernels when they are first used; building them all at install time needs a CUDA toolkit.
    export DS_BUILD_OPS=0
    if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then
        # pip compiles by itself. Without it every process compiles what it imports anew where bytecode may not be written.
        uv pip install --python "$python" --no-deps --require-hashes --compile-bytecode -r "$lock" >&2
    else
        "$python" -m pip install --disable-pip-version-check --progress-bar "$bar" --no-deps --require-hashes -r "$lock" >&2
    fi
    "$python" "$root/tools/check_env.py" "$lock" >&2 || die "the environment is still incomplete after the installation (see above)"
fi
# setuptools and wheel come from the lock, so what follows needs neither isolation nor network.
install=("$python" -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation)
for stand_in in "$root"/requirements/stand_ins/*/; do
    if ! "$python" "$root/tools/check_env.py" --installed "$stand_in/pyproject.toml"; then
        # The build writes beside its source, which may be read-only.
        copy="$(mktemp -d)"
        cp -R "$stand_in/." "$copy"
        "${install[@]}" "$copy" >&2
        rm -rf "$copy"
    fi
done
if ! "$python" "$root/tools/check_env.py" --editable "$root" 2>/dev/null; then
    "${install[@]}" -e "$root" >&2
fi
echo "$python"

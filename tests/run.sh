#!/usr/bin/env bash
# Set up the environment, then run the tests:   bash tests/run.sh [pytest arguments]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
python="$(bash tools/setup_env.sh | tail -n 1)"
exec "$python" -m pytest "$@"

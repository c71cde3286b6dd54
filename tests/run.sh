#!/usr/bin/env bash
# Set up the environment, then run the tests:   bash tests/run.sh [pytest arguments]
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
python="$(bash tools/setup_env.sh | tail -n 1)"
# The review page is tested in a real browser. A CI machine gets one; on anybody else's, installing it is not ours to do,
# and the test says why it was skipped.
if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null && ! command -v chromium >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 \
        || echo "chromium could not be installed: the test of the review page will be skipped" >&2
fi
# One process a core, a file of tests each: most of a test is Python on one core, or waiting for a process of its own.
# In the order of the folders: the long files (faults, integration) first, so that no core waits for one of them at the end.
workers="${SA2VA_DPO_TEST_WORKERS:-$("$python" -c 'import os; print(min(4, len(os.sched_getaffinity(0))))')}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder "$@"

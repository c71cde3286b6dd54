#!/usr/bin/env bash
# What is run on the second stack (transformers 5, see docs/environment.md):   bash tests/run_next.sh [pytest arguments]
set -euo pipefail
export SA2VA_DPO_STACK=next
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="$(bash tools/setup_env.sh | tail -n 1)"
"$python" -m pip check
# As in run.sh; the long files first, so that no core waits for one of them at the end.
workers="${SA2VA_DPO_TEST_WORKERS:-$("$python" -c 'import os; print(min(4, len(os.sched_getaffinity(0))))')}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "$python" -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder \
    tests/integration/test_newer_releases.py \
    tests/integration/test_training.py::test_run_leaves_what_the_guide_lists \
    tests/integration/test_training.py::test_resume_is_exact \
    tests/integration/test_parity.py tests/unit/models tests/unit/datasets/test_preprocess.py "$@"

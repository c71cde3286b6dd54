#!/usr/bin/env bash
# The main job: preference pairs -> DPO training -> test before and after -> export.
#   bash train_dpo_vessel.sh                                              bundled tiny checkpoint, drawn demo set
#   bash train_dpo_vessel.sh --model DIR --images DIR --gt DIR --gpus 4   your checkpoint and data
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="$(bash "$root/tools/setup_env.sh" | tail -n 1)"
cd "$root"
exec "$python" -m sa2va_dpo job "$@"

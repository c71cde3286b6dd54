"""Another SAM2 input size: python tools/set_sam_size.py work_dirs/stage1_hf work_dirs/tiny_stage1 --size 640."""
import sys
from pathlib import Path

# The checkout beside this script wins over any installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'projects' / 'checkout'))

from sa2va_dpo.commands.resize import main  # noqa: E402
from sa2va_dpo.common.errors import cli_main  # noqa: E402

if __name__ == '__main__':
    cli_main(main)()

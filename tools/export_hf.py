"""Write a trained run as a Hugging Face directory: python tools/export_hf.py CONFIG CHECKPOINT OUTPUT (see --help)."""
import sys
from pathlib import Path

# The checkout beside this script wins over any installed copy.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from projects.sa2va.engine.export import main  # noqa: E402
from projects.sa2va.errors import cli_main  # noqa: E402

if __name__ == '__main__':
    cli_main(main)()

"""``sa2va-dpo`` of this checkout as a file, for ``watched.py``."""
from sa2va_dpo.commands.cli import entry

if __name__ == '__main__':
    entry()

"""``python -m sa2va_dpo SUBCOMMAND``."""
from sa2va_dpo.commands.cli import entry

if __name__ == '__main__':
    entry()

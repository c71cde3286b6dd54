"""Packages that a part of the work needs and the rest does not: a missing one is said in one line with its extra."""
from __future__ import annotations

from contextlib import contextmanager
from typing import Iterator

from .errors import InputError

# Extra of this package -> top-level modules that it brings (pyproject.toml).
EXTRAS = dict(
    train=('deepspeed',),
    review=('starlette', 'uvicorn'),
    parquet=('datasets', 'pyarrow'),
    medical=('pydicom', 'nibabel'),
    quantised=('bitsandbytes',),
    demo=('gradio', 'starlette', 'uvicorn'),
    trackers=('wandb', 'mlflow', 'swanlab'),
)


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Inside the block an optional package is imported.

    Args:
        name: of the extra, a key of ``EXTRAS``.
        purpose: what cannot be done without it, for the message.

    Raises:
        InputError: a package of that extra is not installed. Any other failure of the import is passed on.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or '').partition('.')[0]
        if missing not in EXTRAS[name]:
            raise
        raise InputError(f"{purpose} needs the package {missing}, which is not installed: "
                         f"pip install 'sa2va-dpo[{name}]'") from None

"""What of a data root can be read cheaply, before a model is loaded: annotations and the headers of files."""
from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, Iterable

from sa2va_dpo.common.errors import InputError, InputProblems

from .annotations import has_records, read_pairs, read_segs, resolve
from .ground_truth import size_problems


def check_root(root: str | os.PathLike, pairs: Iterable[str] = (), segs: Iterable[str] = (),
               check_prompt: Callable[[str], None] | None = None) -> None:
    """Look at annotation files and at the header of every image and mask that they name.

    Args:
        pairs, segs: names of annotation files; those that are missing or list nothing are left out.
        check_prompt: raises InputError for a question that cannot be asked.

    Raises:
        InputProblems: all that is wrong, each in a line.
    """
    root, problems, prompts = Path(root), [], {}
    matched: list[tuple[Path, Path | None]] = []
    for names, read, masks in ((pairs, read_pairs, ('chosen_mask', 'rejected_mask', 'gt_mask')),
                               (segs, read_segs, ('mask', 'field_of_view'))):
        for name in names:
            if not has_records(root / name):
                continue
            try:
                records = read(root / name, root)
            except InputError as error:
                problems.append(str(error))
                continue
            for record in records:
                prompts.setdefault(record.prompt, f'{root / name}: {record.image}')
                matched += [(resolve(root, record.image), resolve(root, getattr(record, mask)))
                            for mask in masks if getattr(record, mask) is not None]
    for prompt, where in prompts.items() if check_prompt is not None else ():
        try:
            check_prompt(prompt)
        except InputError as error:
            problems.append(f'{where}: {error}')
    problems += size_problems(list(dict.fromkeys(matched)))
    if problems:
        raise InputProblems(problems)

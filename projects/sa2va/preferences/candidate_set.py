"""Candidates for people to pick from: ``candidates.json`` of a data root (docs/rounds.md, docs/review.md)."""
from __future__ import annotations

from pathlib import Path
from typing import Sequence

from sa2va_dpo.common import ownership
from sa2va_dpo.common import processes as ranks
from sa2va_dpo.common.files import hash_text, write_json
from sa2va_dpo.datasets.annotations import CANDIDATES_FILE
from sa2va_dpo.datasets.ground_truth import check_stems
from sa2va_dpo.datasets.samples import SampleMaker

from .config import GenerateConfig
from .generate import mine_images
from .miner import Item, Miner
from .output import REPORT, DataRoot, digest
from .sampler import Policies


@ownership.releases
def make_candidates(config: GenerateConfig, images: Sequence[Path], policy=None, preprocessor=None,
                    frozen: SampleMaker | None = None) -> dict:
    """Write every image's candidates below ``config.output_dir``, and ``candidates.json`` last.

    The file is a list of ``{"image", "prompt", "candidates": [{"mask", "source", "predicted_iou"}, ...],
    "disagreement"}`` with paths relative to the folder; ``disagreement`` is 1 - mean IoU of two candidates, and the
    images on which the candidates disagree most come first. The same call after an interruption goes on; with several
    processes they share the images. Nobody's picks are ever removed: a folder that holds other candidates is refused.

    Args:
        config: mode ``generate``; nothing of judge, pairing or ground truth is used.
        images: originals.
        policy, preprocessor, frozen: see ``generate_pairs``.

    Returns:
        ``images`` (number), ``candidates`` (mean number an image), ``diversity`` (mean disagreement).

    Raises:
        InputError: an image cannot be read, or the folder is not this run's.
    """
    images = [Path(image) for image in images]
    check_stems(images)
    root = DataRoot(config.output_dir, hash_text('candidates ' + config.fingerprint([str(image) for image in images])),
                    CANDIDATES_FILE, config.made_with())
    root.refuse_sources([config.images_dir, *{image.parent for image in images}])
    items = [Item(image, None, digest([image, None])) for image in images]
    inputs = hash_text(''.join(item.inputs for item in items))
    if (report := root.finished(inputs)) is not None:
        ranks.barrier()
        return report
    miner = Miner(config, None, Policies(config.model_path, config.device, policy, preprocessor), frozen)
    mine_images(miner, items, root, inputs, overwrite=False, work=miner.collect)
    if ranks.rank() == 0:
        done = root.entries({item.image.name: item.inputs for item in items})
        entries = [done[item.image.name] for item in items]
        order = sorted(range(len(entries)), key=lambda i: (-(entries[i]['diversity'] or 0), i))
        write_json(root.root / CANDIDATES_FILE, [
            dict(image=f'images/{entries[i]["image"]}', prompt=config.prompt, candidates=entries[i]['candidates'],
                 disagreement=entries[i]['diversity'] or 0.0) for i in order])
        write_json(root.root / REPORT, dict(
            images=len(entries), candidates=sum(len(entry['candidates']) for entry in entries) / max(1, len(entries)),
            diversity=sum(entry['diversity'] or 0.0 for entry in entries) / max(1, len(entries)),
            fingerprint=root.fingerprint, inputs=inputs, made_with=root.made_with))
        root.close()
    ranks.barrier()
    return root.finished(inputs)

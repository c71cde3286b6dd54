"""Pairs of a finished run that another would mine again, mask by mask: they are taken over instead.

A finished run leaves ``generation_entries.json``: the state of the policy that made the candidates, and for every image
the journal entry with digests of the files that lie there. Nothing is taken over that these do not prove to be what
mining would make: the same settings, the same random draws, the same policy, the same image and mask.
"""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from sa2va_dpo.caching.fingerprint import policy_state
from sa2va_dpo.common.differences import differences
from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import copy_file, link_or_copy, make_directory, read_json, write_json

from .config import GenerateConfig
from .output import ENTRIES, DataRoot, digest, mask_files
from .sampler import Policies

if TYPE_CHECKING:
    from .miner import Item

# Settings that say where files lie or which images are held out; what is read is compared by its content.
_ELSEWHERE = ('images_dir', 'gt_dir', 'model_path', 'policy_digest', 'val_fraction', 'test_fraction', 'group_regex',
              'split_seed')
# Sources and judges that read files which no digest is kept of.
_UNRECORDED = ('Checkpoints', 'Committee')


def write_entries(root: DataRoot, entries: Sequence[Mapping], policies: Policies) -> None:
    """Leave what a later run needs to take these pairs over.

    Args:
        root: with all files of the run.
        entries: of the journals, one an image that pairs were mined of.
        policies: those of the run.
    """
    write_json(root.root / ENTRIES, dict(
        made_with=root.made_with, policy=state_of(policies),
        images=[dict(here=_inputs(root.root, entry), masks=_masks(root.root, entry), entry=entry)
                for entry in entries]))


def state_of(policies: Policies) -> str | None:
    """The state of a run's own policy; None for one that a later run cannot be shown to have."""
    policy, preprocessor = policies.get()
    return policy_state(policy, f'{preprocessor.fingerprint()} {preprocessor.view}')


class EarlierPairs:
    """What a finished run left.

    Args:
        root: data root.

    Attributes:
        refused: why nothing of it may be taken over, empty where it may, set by :meth:`fits`; None before, and where a
            run was finished already and did not ask.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.refused: str | None = None
        self._images: list[dict[str, Any]] = []

    def fits(self, config: GenerateConfig, policies: Policies) -> bool:
        """Whether the run that left these pairs made them as ``config`` would, from the same state of the policy."""
        self._images = []
        self.refused = self._why_not(config, policies)
        return not self.refused

    def _why_not(self, config: GenerateConfig, policies: Policies) -> str:
        path = self.root / ENTRIES
        if not path.is_file():
            return 'what they were mined from was not written down'
        try:
            content = read_json(path, kind=dict)
            was, policy, images = _compared(content['made_with']), content['policy'], content['images']
            [dict(image['entry'], here=image['here'], masks=image['masks']) for image in images]
        except (InputError, KeyError, TypeError, ValueError):
            return f'{path.name} cannot be read'
        if changed := differences(was, _compared(config.made_with())):
            return 'made with other settings: ' + '; '.join(changed[:3])
        if any(_name(spec) in _UNRECORDED for spec in (*(config.sources or ()), *config.judge, *config.compared)):
            return 'other checkpoints or masks on disk take part'
        # Last: it reads every weight.
        if policy is None or policy != state_of(policies):
            return 'mined from another state of the policy'
        self._images = images
        return ''

    def into(self, root: DataRoot, items: Sequence['Item'], link: bool) -> None:
        """Copy the pairs of every item of which these are proven to be the pairs, and note it in the journal.

        Args:
            root: claimed; images that its journals hold already are left alone.
            link: hard links to the images instead of copies.

        Raises:
            InputError: the disk would not have it.
        """
        known = {image['entry']['image']: image for image in self._images}
        done = root.entries({item.image.name: item.inputs for item in items})
        todo = [(item, known[item.image.name]) for item in items
                if item.image.name in known and item.image.name not in done
                and self._proven(item, known[item.image.name])]
        if not todo:
            return
        for folder in ('images', 'masks', 'gt'):
            make_directory(root.root / folder)
        journal = root.open_journal(0)
        try:
            for item, image in todo:
                _copy_masks(self.root, root.root, list(dict.fromkeys(mask_files(image['entry']))))
                if item.gt is not None:
                    name = f'gt/{item.image.stem}.png'
                    copy_file(self.root / name, root.root / name)
                root.copy(item.image, f'images/{item.image.name}', link)
                journal.append({**image['entry'], 'inputs': item.inputs, 'taken_over': True})
        finally:
            journal.close()

    def _proven(self, item: 'Item', image: Mapping[str, Any]) -> bool:
        """Whether these are the pairs of this very image and mask, and lie there as they were written."""
        entry = image['entry']
        if item.field_of_view is not None or entry['field_of_view'] or entry['stem'] != item.image.stem:
            return False
        try:
            # The masks of a run lie in its root as it wrote them, whatever file they were read from.
            return (item.inputs in (entry['inputs'], image['here']) and _inputs(self.root, entry) == image['here']
                    and _masks(self.root, entry) == image['masks'])
        except InputError:  # something is gone
            return False


def _inputs(root: Path, entry: Mapping[str, Any]) -> str:
    """As ``Item.inputs`` of the image and the mask that lie in a root."""
    gt = root / 'gt' / f'{entry["stem"]}.png'
    return digest([root / 'images' / entry['image'], gt if gt.is_file() else None, None])


def _masks(root: Path, entry: Mapping[str, Any]) -> str:
    return digest([root / name for name in mask_files(dict(entry))])


def _copy_masks(source: Path, target: Path, names: Sequence[str]) -> None:
    """What is one file under several names stays one."""
    copied: dict[tuple[int, int], Path] = {}
    for name in names:
        status, path = (source / name).stat(), target / name
        first = copied.setdefault((status.st_dev, status.st_ino), path)
        if first is path:
            path.unlink(missing_ok=True)
            copy_file(source / name, path)
        else:
            link_or_copy(first, path)


def _compared(made_with: Mapping[str, Any]) -> dict[str, Any]:
    settings = dict(made_with['settings'])
    models = dict(made_with['models'])
    models.pop(str(settings.get('model_path')), None)
    return dict(settings={name: value for name, value in settings.items() if name not in _ELSEWHERE}, models=models)


def _name(spec: str | Mapping) -> str:
    return spec.partition('=')[0] if isinstance(spec, str) else str(spec.get('type'))

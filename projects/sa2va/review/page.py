"""The page of one reviewer, built with Gradio."""
from __future__ import annotations

import base64
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from html import escape
from itertools import count
from pathlib import Path

# Before the import, which reads it: nothing is to leave the machine.
os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
import gradio as gr  # noqa: E402

from sa2va_dpo.common.errors import InputError  # noqa: E402
from . import picture  # noqa: E402
from .journal import DECISIONS, Journal  # noqa: E402
from .pairs import ReviewSet  # noqa: E402

_ASSETS = Path(__file__).resolve().parents[1] / 'assets' / 'review'
_BUTTONS = (('accept', 'Accept (a)'), ('swap', 'Swap (s)'), ('drop', 'Drop (d)'), ('skip', 'Skip (k)'), ('back', 'Back (b)'))


class Pages:
    """What the reviewer sees, as HTML, and what a key does; knows nothing of Gradio.

    Args:
        review, journal: of one reviewer.
    """

    def __init__(self, review: ReviewSet, journal: Journal) -> None:
        self.review, self.journal = review, journal
        self.ids = list(review.records)
        self._turns = count(1)
        self._ahead = ThreadPoolExecutor(1)
        # Full-resolution pictures are tens of megabytes: this pair, the one before and the one ahead.
        self._pictures = lru_cache(maxsize=3)(self._load)

    def resume(self) -> int:
        """Position of the first pair without a decision; the number of pairs when all are decided."""
        return next((i for i, pair in enumerate(self.ids) if pair not in self.journal.decisions), len(self.ids))

    def press(self, position: int, action: str) -> int:
        """Record the decision on the pair at ``position``, or go back; returns the new position."""
        if action == 'back':
            return max(0, position - 1)
        if position < len(self.ids):
            self.journal.decide(self.ids[position], action)
        return min(position + 1, len(self.ids))

    def render(self, position: int) -> str:
        """HTML of the pair at ``position``, or of the end."""
        # The script tells a new page by its turn, also where the content is the same as before.
        attributes = f'class="rv" data-turn="{next(self._turns)}" data-position="{position}"'
        if position >= len(self.ids):
            done = Counter(self.journal.decisions.values())
            tally = ', '.join(f'{done[name]} {name}' for name in DECISIONS)
            return (f'<div {attributes}><div class="rv-note"><b>All {len(self.ids)} pairs seen.</b><br>{tally}<br><br>'
                    'Press b to go back, or close the page and run the command again with --merge.</div></div>')
        pair = self.ids[position]
        record = self.review.records[pair]
        decision = self.journal.decisions.get(pair)
        decided = sum(name != 'skip' for name in self.journal.decisions.values())
        head = (f'<div class="rv-head"><b>Pair {position + 1} of {len(self.ids)}</b>'
                f'<span class="rv-tag" data-decision="{decision or ""}">{decision or "undecided"}</span>'
                f'<span class="rv-name">{escape(record.image)}</span><span>{decided} decided by {escape(self.journal.reviewer)}'
                '</span><span>zoom <span id="rv-zoom"></span> (wheel, + -, 0 fit, 1 full size, drag)</span></div>')
        try:
            pictures = self._pictures(pair)
        except InputError as error:
            return (f'<div {attributes}>{head}<div class="rv-note">{escape(" ".join(str(error).split()))}<br><br>'
                    'Drop (d) the pair or skip (k) it.</div></div>')
        if position + 1 < len(self.ids):
            self._ahead.submit(self._quietly, self.ids[position + 1])
        width, height, shares, images = pictures
        judge = ''
        if 'judge' in record.extra:
            judge = f', {escape(str(record.extra["judge"]))} {{}}'
        sides = {}
        for side, iou, source in (('chosen', record.chosen_iou, record.chosen_source),
                                  ('rejected', record.rejected_iou, record.rejected_source)):
            score = judge.format(f'{record.extra[f"{side}_score"]:.3f}') if judge else ''
            sides[side] = f'<small>IoU {iou:.3f}{score}{", " + escape(source) if source else ""}</small>'
        labels = dict(
            image=f'Image<small>{width} x {height}</small>', chosen='Chosen' + sides['chosen'],
            rejected='Rejected' + sides['rejected'],
            difference='Difference' + ''.join(
                f'<span class="rv-key" style="background:rgb{colour}"></span>{text} {share:.2%}' for text, colour, share in
                zip(('only chosen', 'only rejected', 'both'), (picture.ONLY_CHOSEN, picture.ONLY_REJECTED, picture.BOTH), shares)))
        panels = ''.join(
            f'<div class="rv-panel"><div>{labels[name]}</div><div class="rv-port"><img alt="{name}" draggable="false" '
            f'width="{width}" height="{height}" src="data:image/png;base64,{images[name]}"></div></div>' for name in labels)
        return (f'<div {attributes} data-pair="{pair}" data-image="{escape(record.image)}" data-width="{width}" '
                f'data-height="{height}">{head}<div class="rv-grid">{panels}</div></div>')

    def _load(self, pair: str) -> tuple[int, int, list[float], dict[str, str]]:
        parts = picture.load(self.review.root, self.review.records[pair])
        chosen, rejected = parts['chosen'], parts['rejected']
        shares = [float(region.mean()) for region in (chosen & ~rejected, rejected & ~chosen, chosen & rejected)]
        parts['difference'] = picture.difference(parts['image'], chosen, rejected)
        height, width = chosen.shape
        # Bytes in the page, not addresses of files: the server gives nothing away but the pairs.
        return width, height, shares, {name: base64.b64encode(picture.encode(part)).decode() for name, part in parts.items()}

    def _quietly(self, pair: str) -> None:
        try:
            self._pictures(pair)
        except InputError:
            pass  # shown when the reviewer comes to the pair


def build(pages: Pages) -> tuple[gr.Blocks, dict]:
    """The page, and the arguments that ``launch`` needs for its looks."""
    with gr.Blocks(title='Review of preference pairs', analytics_enabled=False) as page:
        position = gr.State(0)
        view = gr.HTML(elem_id='rv-view')
        with gr.Row():
            for action, label in _BUTTONS:
                button = gr.Button(label, elem_id=f'rv-{action}', elem_classes='rv-button', size='sm')
                button.click(_action(pages, action), position, [position, view], show_progress='hidden',
                             api_visibility='private', concurrency_limit=1, concurrency_id='journal')
        page.load(lambda: _shown(pages, pages.resume()), None, [position, view], show_progress='hidden',
                  api_visibility='private')
    return page, dict(
        css=(_ASSETS / 'page.css').read_text(encoding='utf-8'),
        head=f'<script>{(_ASSETS / "page.js").read_text(encoding="utf-8")}</script>',
        # Local fonts: the default theme asks Google for its own.
        theme=gr.themes.Base(font=['sans-serif'], font_mono=['monospace']))


def _action(pages: Pages, action: str):
    return lambda position: _shown(pages, pages.press(position, action))


def _shown(pages: Pages, position: int) -> tuple[int, str]:
    return position, pages.render(position)

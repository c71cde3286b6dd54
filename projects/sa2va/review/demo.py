"""The page of ``sa2va-dpo predict --demo``: drop an image, see the masks of one checkpoint or of two side by side.

Logits are kept while the page shows an image, so that another threshold costs no forward pass. Everything the page
needs comes from this machine; gradio's analytics, version check and share link are off.
"""
from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.files import read_json
from sa2va_dpo.common.optional import extra
from sa2va_dpo.datasets.image_files import find_images
from sa2va_dpo.datasets.mask_io import read_image_rgb
from sa2va_dpo.datasets.seg_dataset import DEFAULT_PROMPT
from sa2va_dpo.evaluation.counts import confusion_counts, dice
from sa2va_dpo.evaluation.measures import vessel_measures
from sa2va_dpo.evaluation.overlay import BLUE, GREY, ORANGE, apart, fitted, painted
from sa2va_dpo.inference.predictor import Predictor, view_of

from .gate import hosts_of
from .server import listen

TEXTS = Path(__file__).resolve().parents[1] / 'assets' / 'demo' / 'text.json'
# Of a picture on the page, pixels.
_MOST = 1600
# What a session keeps goes after so many seconds without it.
_KEPT_S = 3600
_FONTS = ('system-ui', 'Segoe UI', 'Noto Sans', 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', 'sans-serif')


def language(asked: str | None) -> str:
    """``en`` or ``zh``: as asked, else as the environment's locale has it."""
    if asked is not None:
        return asked
    for name in ('LC_ALL', 'LC_MESSAGES', 'LANG'):
        if os.environ.get(name):
            return 'zh' if os.environ[name].lower().startswith('zh') else 'en'
    return 'en'


@dataclass
class Seen:
    """An image on the page: uint8 [H, W, 3], and each checkpoint's logits, float32 [H, W]."""

    image: np.ndarray
    logits: list[np.ndarray]


class Demo:
    """What the page asks for.

    Args:
        predictors: name -> a checkpoint; one or two.
        text: keys of ``assets/demo/text.json`` in one language.
    """

    def __init__(self, predictors: Mapping[str, Predictor], text: Mapping[str, str]) -> None:
        self.predictors, self.text = dict(predictors), text

    def frames(self, path: str | None) -> int:
        """How many pictures are in a file.

        Raises:
            InputError: it cannot be read.
        """
        return len(_frames(path)) if path else 1

    def segment(self, path: str, frame: int, prompt: str) -> Seen:
        """Read a picture (``frame`` from 1) and predict it with every checkpoint.

        Raises:
            InputError: it cannot be read, or a prompt that cannot be used.
        """
        frames = _frames(path)
        image = read_image_rgb(frames[min(max(1, frame), len(frames)) - 1])
        return Seen(image, [p.predict(image, prompt).logits[0] for p in self.predictors.values()])

    def pictures(self, seen: Seen, threshold: float) -> tuple[list[np.ndarray], str]:
        """What the page shows: overlay and mask of each checkpoint, of two also their difference (uint8 RGB), and the
        table of measures (Markdown)."""
        cut = np.log(threshold) - np.log1p(-threshold)
        masks = [logits > cut for logits in seen.logits]
        found = []
        for mask in masks:
            found += [fitted(painted(seen.image, ((mask, BLUE),), gain=0.85, opacity=0.6), _MOST),
                      fitted(np.repeat(mask.astype(np.uint8)[..., None] * 255, 3, axis=2), _MOST)]
        if len(masks) == 2:
            first, second = masks
            regions = tuple(zip(apart(first, second), (GREY, BLUE, ORANGE)))
            found.append(fitted(painted(seen.image, regions), _MOST))
        return found, self._table(masks)

    def _table(self, masks: Sequence[np.ndarray]) -> str:
        measured = [asdict(vessel_measures(mask)) for mask in masks]
        lines = [[self.text['measure'], *self.predictors], ['---', *['---:'] * len(masks)]]
        for name in measured[0]:
            form = {'vessel_share': '{:.2%}', 'skeleton_length_px': '{:,.0f}'}.get(name, '{:,}')
            lines.append([self.text[name], *(form.format(values[name]) for values in measured)])
        if len(masks) == 2:
            lines.append([self.text['agreement'], f'{dice(confusion_counts(*masks)):.4f}', ''])
        return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _frames(path: str) -> list[Path]:
    found = find_images([path])
    for image in found:
        if image.problem is not None:
            raise InputError(image.problem)
    return [image.path for image in found]


def names_of(checkpoints: Sequence[str]) -> list[str]:
    """What the page calls checkpoints: the names of their folders, with enough of the path to tell them apart."""
    paths = [Path(checkpoint).resolve() for checkpoint in checkpoints]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ['/'.join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise InputError(f'--compare {checkpoints[-1]}: is the same folder as --model: give another one')


def build(demo: Demo, lang: str) -> Any:
    """The page as a gradio ``Blocks``."""
    with extra('demo', 'the demo page'):
        import gradio as gr

    text, names = demo.text, list(demo.predictors)

    def told(function, *arguments):
        try:
            return function(*arguments)
        except InputError as error:
            raise gr.Error(' '.join(str(error).split()), print_exception=False) from None

    def drop(path):
        count = told(demo.frames, path)
        return gr.update(maximum=max(count, 2), value=1, visible=count > 1)

    def segment(path, frame, prompt, threshold):
        if path is None:
            return [None, None, *[None] * len(shown), '']
        seen = told(demo.segment, path, int(frame), prompt)
        pictures, table = demo.pictures(seen, threshold)
        return [seen, fitted(seen.image, _MOST), *pictures, table]

    def cut(seen, threshold):
        if seen is None:
            return [*[None] * len(shown), '']
        pictures, table = demo.pictures(seen, threshold)
        return [*pictures, table]

    with gr.Blocks(title=text['title'], analytics_enabled=False, delete_cache=(_KEPT_S, _KEPT_S)) as page:
        gr.Markdown(f'# {text["title"]}\n{text["about"]}')
        kept = gr.State(time_to_live=_KEPT_S)
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                file = gr.File(label=text['file'], file_count='single', type='filepath', height=150, elem_id='file')
                frame = gr.Slider(1, 2, 1, step=1, label=text['frame'], visible=False, elem_id='frame')
                prompt = gr.Textbox(DEFAULT_PROMPT.replace('<image>', ''), label=text['prompt'], elem_id='prompt')
                threshold = gr.Slider(0.01, 0.99, 0.5, step=0.01, label=text['threshold'], elem_id='threshold')
            with gr.Column(scale=3):
                with gr.Row():
                    image = _picture(gr, text['image'], 'image')
                    overlays = [_picture(gr, text['overlay'].format(name=name), f'overlay-{k}')
                                for k, name in enumerate(names)]
                with gr.Row():
                    masks = [_picture(gr, text['mask'].format(name=name), f'mask-{k}') for k, name in enumerate(names)]
                    if len(names) == 2:
                        label = text['difference'].format(first=names[0], second=names[1])
                        difference = [_picture(gr, label, 'difference')]
                table = gr.Markdown(elem_id='table')
        shown = [part for pair in zip(overlays, masks) for part in pair] + (difference if len(names) == 2 else [])
        asked, given = [file, frame, prompt, threshold], [kept, image, *shown, table]
        quiet = dict(api_visibility='private')
        file.change(drop, file, frame, **quiet).success(segment, asked, given, **quiet)
        prompt.submit(segment, asked, given, **quiet)
        frame.release(segment, asked, given, **quiet)
        threshold.change(cut, [kept, threshold], [*shown, table], trigger_mode='always_last', show_progress='hidden',
                         **quiet)
    return page


def _picture(gr: Any, label: str, name: str) -> Any:
    return gr.Image(label=label, format='png', interactive=False, buttons=['download', 'fullscreen'], min_width=240,
                    elem_id=name)


def serve(checkpoints: Sequence[str], *, base: str | None = None, device: str | None = None,
          grid: int | str | None = None, host: str = '127.0.0.1', port: int = 7861, lang: str | None = None) -> None:
    """Serve the page until interrupted.

    Args:
        checkpoints: one directory, or two to be compared; released layout or adapters.
        base: the checkpoint of the first one, an adapter, where it is not at the recorded path.
        device: default a GPU where there is one.
        grid: tiles along each axis or ``'auto'``, in place of what the checkpoints state.
        host, port: to listen on; port 0 takes a free one.
        lang: ``en`` or ``zh``; None: see :func:`language`.

    Raises:
        InputError: a checkpoint that cannot be used, an address that cannot be listened on, or gradio is missing.
        KeyboardInterrupt: Ctrl-C.
    """
    # Read when gradio is imported.
    os.environ.update(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_DISABLE_TELEMETRY='1', DO_NOT_TRACK='1')
    names = names_of(checkpoints)
    with tempfile.TemporaryDirectory(prefix='sa2va-dpo-demo-') as uploads, listen(host, port) as listener:
        os.environ['GRADIO_TEMP_DIR'] = uploads
        with extra('demo', 'the demo page'):
            import gradio as gr
            import uvicorn
            from starlette.applications import Starlette
            from starlette.middleware.trustedhost import TrustedHostMiddleware

        predictors = {}
        for name, checkpoint, under in zip(names, checkpoints, (base, None)):
            view = view_of(checkpoint, under, grid)
            predictors[name] = Predictor.from_pretrained(checkpoint, device=device, base=under, view=view)
        lang = language(lang)
        page = build(Demo(predictors, read_json(TEXTS)[lang]), lang)
        theme = gr.themes.Base(font=_FONTS, font_mono=('ui-monospace', 'monospace'))
        app = gr.mount_gradio_app(Starlette(), page, '/', theme=theme, footer_links=[], ssr_mode=False,
                                  show_error=True)
        port = listener.getsockname()[1]
        # A page of another site that gets a name of its own to point here (DNS rebinding) is refused.
        allowed = [name.rpartition(':')[0] if ':' in name else name for name in hosts_of(host, port)]
        guarded = TrustedHostMiddleware(app, allowed_hosts=sorted({*allowed, host}))
        server = uvicorn.Server(uvicorn.Config(guarded, log_level='error', access_log=False, server_header=False,
                                               timeout_graceful_shutdown=3))
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[listener]), daemon=True)
        thread.start()
        print(f'{", ".join(names)}; Ctrl-C ends. Open http://{host}:{port}/', flush=True)
        try:
            while thread.is_alive():
                thread.join(0.2)
        finally:
            server.should_exit = True
            thread.join(10)

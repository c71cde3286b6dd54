"""One file of HTML: figures, pictures, style and script inside, nothing fetched."""
from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import sa2va_dpo
from sa2va_dpo.common.files import write_text
from sa2va_dpo.datasets.names import printable

from .cases import Case
from .comparison import Line, Verdict
from .pairs import Pairs
from .pictures import Picture
from .text import ASSETS, Text, tables

REPORT_FILE = 'report.html'


@dataclass
class Report:
    """What the page shows; whatever is empty is left out.

    Attributes:
        kind: ``'job'`` or ``'test'``.
        name: of the folder.
        notes: sentences on what is missing and why.
        facts: (text key, value) of the head.
        plot: every image, before against after, or by rank.
        groups: group of images -> its cases.
        rounds: one mapping a round, column -> text.
        pairs: (heading or '', pairs).
        commands: (text key, command line).
        settings: (name, default, here) of what differs from the default.
        recipe, hashes: (name, value).
    """

    kind: str
    name: str
    verdict: Verdict
    notes: list[str] = field(default_factory=list)
    facts: list[tuple[str, Any]] = field(default_factory=list)
    images: int = 0
    lines: Sequence[Line] = ()
    plot: Markup | None = None
    groups: Mapping[str, Sequence[Case]] = field(default_factory=dict)
    curves: Sequence[Markup] = ()
    alarms: Sequence[Mapping[str, Any]] = ()
    rounds: Sequence[Mapping[str, Any]] = ()
    rounds_ended: str | None = None
    pairs: Sequence[tuple[str, Pairs]] = ()
    commands: Sequence[tuple[str, str]] = ()
    settings: Sequence[tuple[str, str, str]] = ()
    recipe: Sequence[tuple[str, str]] = ()
    hashes: Sequence[tuple[str, str]] = ()

    @property
    def shown_images(self) -> int:
        """Images with a picture."""
        return sum(case.picture is not None for cases in self.groups.values() for case in cases)

    def pictures(self) -> Iterator[tuple[str, Picture]]:
        """Key on the page and picture of everything that is shown."""
        cases = [case for group in self.groups.values() for case in group]
        for item in [*cases, *(pair for _, pairs in self.pairs for pair in pairs.shown)]:
            if item.picture is not None:
                yield item.key, item.picture

    @property
    def sections(self) -> list[str]:
        wanted = dict(figures=self.lines, images=self.lines, training=self.curves or self.alarms, rounds=self.rounds,
                      pairs=self.pairs, repeat=True)
        return [name for name, there in wanted.items() if there]


def render(report: Report, text: Text) -> str:
    """The page. Every value is escaped: names of files are whatever their owner called them."""
    css, js = ((ASSETS / name).read_text(encoding='utf-8') for name in ('report.css', 'report.js'))
    css += ''.join(_photograph(key, picture) for key, picture in report.pictures())
    environment = Environment(loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, finalize=_printable)
    environment.filters.update(number=_number, signed=_signed, p_value=_p_value)
    return environment.get_template(REPORT_FILE).render(
        report=report, sections=report.sections, t=text, known=lambda key: key in tables()[text.language],
        css=Markup(css), js=Markup(js), policy=policy(css, js), version=sa2va_dpo.__version__) + '\n'


def write(report: Report, folder: Path, text: Text) -> Path:
    """Write ``report.html`` into a folder; whole or not at all."""
    path = folder / REPORT_FILE
    write_text(path, render(report, text))
    return path


def policy(css: str, js: str) -> str:
    """The content security policy: pictures that are in the file, this style and this script, nothing else."""
    def digest(content: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"

    return (f"default-src 'none'; img-src data:; style-src {digest(css)}; script-src {digest(js)}; "
            "base-uri 'none'; form-action 'none'")


def _photograph(key: str, picture: Picture) -> str:
    """A style of its own, so that the views of an image share one photograph."""
    return (f'.photo-{key} {{ aspect-ratio: {picture.width} / {picture.height}; '
            f'background-image: url({picture.photograph}); }}\n')


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: float, digits: int = 4) -> str:
    return f'{value:.{digits}f}'


def _signed(value: float, digits: int = 4) -> str:
    return f'{value:+.{digits}f}'.replace('-', '−')


def _p_value(value: float | None) -> str:
    return '–' if value is None else '< 0.001' if value < 0.001 else f'{value:.3f}'

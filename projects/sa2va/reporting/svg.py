"""Matplotlib's drawings as part of a page: no inline style, colours by class, so that a strict policy and dark mode
hold."""
from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from typing import Mapping, Sequence

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# What a figure draws with -> the class that the page colours, lighter in dark mode (assets/report/report.css).
INK, SOFT = '#010101', '#020202'
BLUE, ORANGE, GREY = '#0072b2', '#e69f00', '#7f7f7f'  # told apart with every kind of colour vision
_CLASSES = {INK: 'ink', SOFT: 'soft', BLUE: 'blue', ORANGE: 'orange', GREY: 'grey'}

_STYLE = {
    'svg.fonttype': 'none', 'font.size': 9, 'axes.titlesize': 9, 'axes.labelsize': 9, 'legend.fontsize': 8,
    'text.color': INK, 'axes.edgecolor': INK, 'axes.labelcolor': INK, 'xtick.color': INK, 'ytick.color': INK,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True, 'grid.color': SOFT, 'grid.linewidth': 0.5,
    'axes.facecolor': 'none', 'figure.facecolor': 'none', 'legend.frameon': False, 'lines.linewidth': 1.4,
    'axes.axisbelow': True, 'axes.linewidth': 0.8,
}
_XLINK = '{http://www.w3.org/1999/xlink}href'


def style():
    """The context in which figures are drawn: the page's colours, no process-wide settings."""
    return matplotlib.rc_context(_STYLE)


def embed(figure: Figure, name: str, label: str,
          marks: Mapping[str, Sequence[Mapping[str, str]]] | None = None) -> Markup:
    """A figure as an ``<svg>`` element.

    Args:
        name: keeps the ids of several figures of a page apart.
        label: what a screen reader says.
        marks: gid of a collection of points -> for each point ``title`` (shown on hover) and further attributes.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**_STYLE, 'svg.hashsalt': name}), warnings.catch_warnings():
        # Chinese labels are drawn with the reader's fonts, not with matplotlib's.
        warnings.filterwarnings('ignore', message='.*[Gg]lyph.*')
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict(Date=None, Creator=None, Format=None, Type=None))
    root = ET.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition('}')[2]
    for parent in [*root.iter()]:
        for child in [*parent]:
            if child.tag in ('metadata', 'style'):
                parent.remove(child)
    for gid, points in (marks or {}).items():
        _mark(root, gid, points)
    _tidy(root)
    for size in ('width', 'height'):
        root.attrib.pop(size, None)
    root.attrib.update({'role': 'group', 'aria-label': label})
    return Markup(ET.tostring(root, encoding='unicode', short_empty_elements=False))


def _mark(root: ET.Element, gid: str, points: Sequence[Mapping[str, str]]) -> None:
    group = next(element for element in root.iter('g') if element.get('id') == gid)
    # Matplotlib draws few points as paths and many as uses of one.
    drawn = [*group.iter('use')] or [child for child in group if child.tag == 'path']
    for shape, point in zip(drawn, points, strict=True):
        values = dict(point)
        title = ET.SubElement(shape, 'title')
        title.text = values.pop('title')
        shape.attrib.update(values)


def _tidy(root: ET.Element) -> None:
    """Style attributes become presentation attributes and classes; ids that nothing refers to go."""
    used = set()
    for element in root.iter():
        target = element.attrib.pop(_XLINK, None)
        if target is not None:
            element.set('href', target)
            used.add(target[1:])
        for name, value in _styles(element.attrib.pop('style', '')):
            if name in ('font', 'font-family'):
                size = re.search(r'([\d.]+)px', value)
                if size:
                    element.set('font-size', size[1])
            else:
                element.set(name, value)
        classes = [element.get('class', '')]
        for name, letter in (('fill', 'f'), ('stroke', 's')):
            found = _CLASSES.get(element.get(name, '').lower())
            if found:
                classes.append(f'{letter}-{found}')
                del element.attrib[name]
        if element.tag == 'text' and not any(part.startswith('f-') for part in classes):
            classes.append('f-ink')
        if text := ' '.join(filter(None, classes)):
            element.set('class', text)
        clip = re.fullmatch(r'url\(#(.+)\)', element.get('clip-path', ''))
        if clip:
            used.add(clip[1])
    for element in root.iter():
        if element.get('id') not in used:
            element.attrib.pop('id', None)


def _styles(text: str) -> list[tuple[str, str]]:
    parts = (part.partition(':') for part in text.split(';') if ':' in part)
    return [(name.strip(), value.strip()) for name, _, value in parts]

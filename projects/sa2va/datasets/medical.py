"""DICOM pictures and NIfTI volumes; their libraries are the optional extra ``medical``."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.common.limits import check_pixels


def has_dicom_mark(path: Path) -> bool:
    """Whether the letters DICM stand after the 128 bytes that DICOM leaves free."""
    try:
        with open(path, 'rb') as file:
            return file.read(132)[128:] == b'DICM'
    except OSError:
        return False


def window(values: np.ndarray, center: float, width: float, function: str = 'LINEAR') -> np.ndarray:
    """DICOM's window (PS3.3 C.11.2.1.2 and C.11.2.1.3) as uint8 of the same shape.

    Args:
        function: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``.
    """
    values = values.astype(np.float64)
    if function == 'SIGMOID':
        level = 1 / (1 + np.exp(-4 * (values - center) / width))
    elif function == 'LINEAR_EXACT':
        level = (values - center) / width + 0.5
    else:
        # A width of 1 is a threshold.
        level = (values - (center - 0.5)) / (width - 1) + 0.5 if width > 1 else (values > center - 0.5).astype(float)
    return np.rint(255 * np.clip(level, 0, 1)).astype(np.uint8)


def stretch(values: np.ndarray) -> np.ndarray:
    """Numbers [H, W] as uint8 over their own range; NaN counts as the lowest."""
    values = np.nan_to_num(values.astype(np.float64), nan=np.nanmin(values) if np.isfinite(values).any() else 0)
    low, high = values.min(), values.max()
    return np.rint((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


class Dicom:
    """A DICOM file of one or several frames."""

    @staticmethod
    def count(path: Path) -> int:
        """Frames; 0 of a whole file that is no picture (a report, a presentation state)."""
        header = _dicom_header(path)
        if 'SOPClassUID' not in header:
            raise InputError(
                f'{path}: cannot be read as DICOM (it says neither what it is nor how large): is the file complete?'
            )
        return max(1, _whole(path, header, 'NumberOfFrames', 1)) if 'Rows' in header and 'Columns' in header else 0

    @staticmethod
    def size(path: Path) -> tuple[int, int]:
        header = _dicom_header(path)
        width, height = _whole(path, header, 'Columns', 0), _whole(path, header, 'Rows', 0)
        check_pixels(path, width, height)
        return width, height

    @staticmethod
    def frame(path: Path, index: int) -> np.ndarray:
        """uint8 [H, W] or [H, W, 3]: rescaled, windowed (without a window over its own range), MONOCHROME1 inverted."""
        Dicom.size(path)
        pydicom = _library('pydicom', path)
        from pydicom import pixels

        try:
            data = pydicom.dcmread(path)
            values = pixels.pixel_array(data, index=index)
            if data.PhotometricInterpretation == 'PALETTE COLOR':
                colours = pixels.apply_color_lut(values, data)
                return np.rint(colours * (255 / (255 if colours.dtype == np.uint8 else 65535))).astype(np.uint8)
            if values.ndim == 3:
                return values if values.dtype == np.uint8 else stretch(values)
            grey = _dicom_grey(data, values, index, pixels)
        except InputError:
            raise
        except Exception as error:  # pydicom raises whatever its decoders raise
            raise InputError(
                f'{path}: cannot be read as DICOM ({" ".join(str(error).split())[:200]}): is the file complete, and '
                'is its compression installed (pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg)?'
            ) from None
        return 255 - grey if data.PhotometricInterpretation == 'MONOCHROME1' else grey


def _dicom_grey(data: Any, values: np.ndarray, index: int, pixels: Any) -> np.ndarray:
    if 'ModalityLUTSequence' in data:
        values = pixels.apply_modality_lut(values, data)
    else:
        slope, intercept = (_first(_of_frame(data, index, 'PixelValueTransformationSequence', name), default)
                            for name, default in (('RescaleSlope', 1.0), ('RescaleIntercept', 0.0)))
        values = values * slope + intercept
    if 'VOILUTSequence' in data:
        return stretch_to(pixels.apply_voi(values.astype(np.int64), data), int(data.VOILUTSequence[0].LUTDescriptor[2]))
    center, width = (
        _first(_of_frame(data, index, 'FrameVOILUTSequence', name), None) for name in ('WindowCenter', 'WindowWidth')
    )
    if center is None or width is None or not width > 0:
        return stretch(values)
    function = _of_frame(data, index, 'FrameVOILUTSequence', 'VOILUTFunction')
    return window(values, center, width, str(function or 'LINEAR'))


def stretch_to(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of so many bits as uint8."""
    return np.rint(np.clip(values / (2 ** bits - 1), 0, 1) * 255).astype(np.uint8)


def _of_frame(data: Any, index: int, sequence: str, name: str) -> Any:
    """An attribute of the file or, in enhanced files, of a frame's or all frames' functional groups."""
    if name in data:
        return data[name].value
    for groups, position in (('PerFrameFunctionalGroupsSequence', index), ('SharedFunctionalGroupsSequence', 0)):
        if groups in data and sequence in data[groups][position] and name in data[groups][position][sequence][0]:
            return data[groups][position][sequence][0][name].value
    return None


def _first(value: Any, default: float | None) -> float | None:
    """One number of an attribute that may hold several."""
    if value is None or value == '':
        return default
    return float(value[0]) if not isinstance(value, (str, int, float)) and hasattr(value, '__len__') else float(value)


def _dicom_header(path: Path) -> Any:
    pydicom = _library('pydicom', path)
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:  # whatever it is, it is about this file
        raise InputError(
            f'{path}: cannot be read as DICOM ({" ".join(str(error).split())[:200]}): is the file complete?'
        ) from None


def _whole(path: Path, header: Any, name: str, default: int) -> int:
    value = header.get(name, default)
    try:
        return default if value in (None, '') else int(value)
    except (TypeError, ValueError):
        raise InputError(f'{path}: {name} is {str(value)[:40]!r}, must be a whole number') from None


class Nifti:
    """A NIfTI volume; its slices along the third axis are its frames, shown as ITK shows them: the first axis runs
    right."""

    @staticmethod
    def count(path: Path) -> int:
        return _nifti(path)[1][2]

    @staticmethod
    def size(path: Path) -> tuple[int, int]:
        width, height, _ = _nifti(path)[1]
        check_pixels(path, width, height)
        return width, height

    @staticmethod
    def frame(path: Path, index: int) -> np.ndarray:
        """[H, W] in the file's own numbers."""
        Nifti.size(path)
        volume, _ = _nifti(path)
        try:
            values = np.asarray(volume.dataobj[(slice(None), slice(None), index, *(0,) * (len(volume.shape) - 3))]
                                if len(volume.shape) > 2 else volume.dataobj)
        except Exception as error:  # a truncated archive shows itself only here
            raise InputError(
                f'{path}: cannot be read as NIfTI ({" ".join(str(error).split())[:200]}): is the file complete?'
            ) from None
        if values.dtype.kind not in 'buif':
            raise InputError(f'{path}: holds {values.dtype} in each voxel, must hold one number: export a label volume')
        return values.T


def _nifti(path: Path) -> tuple[Any, tuple[int, int, int]]:
    """The opened volume and (width, height, slices)."""
    nibabel = _library('nibabel', path)
    try:
        volume = nibabel.load(path)
        shape = tuple(int(side) for side in volume.shape)
    except Exception as error:  # whatever it is, it is about this file
        raise InputError(
            f'{path}: cannot be read as NIfTI ({" ".join(str(error).split())[:200]}): is the file complete?'
        ) from None
    if len(shape) < 2 or any(side != 1 for side in shape[3:]) or min(shape) < 1:
        raise InputError(f'{path}: is a volume of shape {shape}, must be a picture or a stack of pictures (x, y[, z])')
    return volume, (shape[0], shape[1], shape[2] if len(shape) > 2 else 1)


def _library(name: str, path: Path) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        kind = dict(pydicom='DICOM', nibabel='NIfTI')[name]
        raise InputError(f"{path}: is {kind}, which needs {name}: pip install 'sa2va-dpo[medical]'") from None

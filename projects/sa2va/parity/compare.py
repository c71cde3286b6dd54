"""Compare our model with reference numbers of the original one, tensor by tensor.

Everything is recomputed from a fixture folder's checkpoint, image and text; references are only read to be compared.
"""
from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.image_views import as_rgb
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import load_checkpoint
from sa2va_dpo.models.generate import generate
from sa2va_dpo.models.sa2va import MaskOutput, Sa2VAModel, upsample_logits

from .upstream import inference_sample

# Float32. Features: absolute, relative to the largest reference value where that exceeds 1. Logits: absolute.
FEATURE_TOLERANCE, LOGIT_TOLERANCE = 1e-4, 1e-3
_LOGITS = ('mask.low_res', 'mask.low_res_multimask', 'mask.model_res', 'mask.final_logits', 'mask.object_score_logits',
           '.logits')
# How the original helper's own bfloat16 rounding moves the masks; the fixtures say that these are no targets.
_NOT_TARGETS = 'variant_'


@dataclass(frozen=True)
class Row:
    """One compared tensor. ``passed`` is None when it was not compared; ``note`` then says why."""

    name: str
    max_abs_diff: float | None
    tolerance: float | None
    passed: bool | None
    note: str = ''


def _mask_tensors(case: str, output: MaskOutput, model: Sa2VAModel, size_hw) -> dict[str, torch.Tensor]:
    final = upsample_logits(output.low_res, model.sam_size, size_hw)
    return {f'{case}.seg_embedding': output.seg_embedding,
            f'{case}.mask.low_res': output.low_res.unsqueeze(1),
            f'{case}.mask.low_res_multimask': output.hypotheses,
            f'{case}.mask.iou_pred': output.iou_pred,
            f'{case}.mask.object_score_logits': output.object_score,
            f'{case}.mask.model_res': upsample_logits(output.low_res, model.sam_size).unsqueeze(1),
            f'{case}.mask.final_logits': final,
            f'{case}.mask.final_binary': (final.sigmoid() > 0.5).to(torch.uint8)}


def _teacher_forced(case: str, turns, model: Sa2VAModel, pre: Sa2VAPreprocessor, encoded: dict, features,
                    head: torch.Tensor) -> dict[str, torch.Tensor]:
    sample = {**encoded, **pre.encode_conversation(turns, num_image_tokens=pre.num_image_tokens(encoded),
                                                   truncate_after_seg=False)}
    batch, captured = pre.collate([sample]), {}
    # The input of the decoder's norm; Qwen3-VL keeps that norm outside the decoder.
    norm = model.mllm.language_model.norm
    hook = norm.register_forward_pre_hook(lambda _, args: captured.update(before=args[0]))
    hidden = model.mllm(batch)
    hook.remove()
    after = model.mllm.vocabulary_state(hidden)
    positions = model.mllm.positions(batch) if hasattr(model.mllm, 'positions') else None
    seg = sample['seg_positions']
    logits = F.linear(after, head)
    output = model.decode(features, model.embed_states(hidden[0, seg]), torch.zeros_like(seg))
    tensors = {f'{case}.input_ids': batch['input_ids'], f'{case}.labels': batch['labels'],
               f'{case}.seg_positions': seg, f'{case}.last_hidden_state': hidden, f'{case}.hidden_states_last': hidden,
               f'{case}.last_layer_output_pre_norm': captured['before'], f'{case}.last_hidden_state_post_norm': after,
               f'{case}.seg_hidden': hidden[0, seg], f'{case}.seg_hidden_post_norm': after[0, seg],
               f'{case}.logits': logits,
               f'{case}.lm_loss': F.cross_entropy(logits[0, :-1], batch['labels'][0, 1:])[None],
               f'{case}.position_ids': torch.arange(hidden.shape[1])[None]}
    if positions is not None:
        tensors[f'{case}.mrope_position_ids'] = positions
    return {**tensors, **_mask_tensors(case, output, model, sample['original_size'])}


def _generated(case: str, user_text: str, model: Sa2VAModel, pre: Sa2VAPreprocessor, image: Image.Image, features,
               head: torch.Tensor) -> dict[str, torch.Tensor]:
    sample = inference_sample(pre, image, user_text)
    batch = pre.collate([sample])
    result = generate(model, batch, head, seg_token_id=pre.seg_token_id, end_token_ids=pre.end_token_ids)
    tensors = {f'{case}.input_ids': batch['input_ids'], f'{case}.generated_ids': result.token_ids[None]}
    tensors.update({f'{case}.{key}': batch[key] for key in pre.images.concatenated})
    if len(result.seg_states):
        rows = torch.zeros(len(result.seg_states), dtype=torch.int64)
        output = model.decode(features, model.embed_states(result.seg_states), rows)
        tensors.update(_mask_tensors(case, output, model, sample['original_size']))
    return tensors


@torch.no_grad()
def recompute(
    model: Sa2VAModel, pre: Sa2VAPreprocessor, image: Image.Image, inputs: Mapping
) -> dict[str, torch.Tensor]:
    """Every tensor that a fixture may hold, by its name there.

    Args:
        inputs: ``inputs.json``: ``question``, ``answer``, optionally ``question_turn2``, ``answer_turn2`` and
            ``infer_user_text``.
    """
    encoded = pre.encode_image(image)
    batch = {k: v for k, v in encoded.items() if isinstance(v, torch.Tensor)}
    sam_pixels = encoded['sam_pixel_values'][None]
    features, head = model.encode_image(sam_pixels), model.source.vocabulary_head().float()
    square = np.asarray(as_rgb(image).resize((pre.sam_size, pre.sam_size)))
    tensors = {'vision.pixel_values': encoded['pixel_values'],
               'sam.resized_uint8': torch.from_numpy(square.transpose(2, 0, 1).copy()),
               'sam.pixel_values': sam_pixels, 'sam.dense_pe': model.dense_position_encoding(),
               'sam.image_embed_raw': model.sam2_levels(sam_pixels)[2], 'sam.image_embed': features.image_embed,
               'sam.high_res_feat_0': features.high_res[0], 'sam.high_res_feat_1': features.high_res[1]}
    if hasattr(model.mllm, 'patch_states'):
        patches = model.mllm.patch_states(batch['pixel_values'])
        tensors.update({'vision.encoder_last_hidden': patches, 'vision.projected': model.mllm.project(patches)})
    else:
        tensors.update({'vision.image_grid_thw': encoded['image_grid_thw'],
                        'vision.projected': model.mllm.image_tokens(batch)})
    if hasattr(model.mllm, 'vision_states'):
        tensors.update({f'vision.deepstack_{i}': deep for i, deep in enumerate(model.mllm.vision_states(batch)[1])})
    turns = [(inputs['question'], inputs['answer'])]
    tensors.update(_teacher_forced('train', turns, model, pre, encoded, features, head))
    if 'question_turn2' in inputs:
        turns.append((inputs['question_turn2'], inputs['answer_turn2']))
        tensors.update(_teacher_forced('train2', turns, model, pre, encoded, features, head))
    typed = inputs.get('infer_user_text', dict(newline='<image>\n' + inputs['question'],
                                               no_newline='<image>' + inputs['question']))
    for name, text in typed.items():
        tensors.update(_generated(f'infer_{name}', text, model, pre, image, features, head))
    return tensors


def compare(reference: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor]) -> list[Row]:
    """One row per reference tensor.

    Integers must be equal. Binary masks must be equal wherever the reference logit is further than the logit tolerance
    from zero.
    """
    rows = []
    for name in sorted(reference):
        expected, got = reference[name], ours.get(name)
        if name.startswith(_NOT_TARGETS):
            rows.append(Row(name, None, None, None, 'not a target'))
        elif got is None:
            # Masks of a generated answer are missing only when no [SEG] came out: that is a failure, not a gap.
            lost = name.startswith('infer_')
            rows.append(Row(name, None, None, False if lost else None,
                            'no [SEG] was generated' if lost else 'not recomputed'))
        elif got.shape != expected.shape:
            rows.append(Row(name, None, None, False, f'shape {list(got.shape)}, reference {list(expected.shape)}'))
        else:
            difference = (got.double() - expected.double()).abs()
            tolerance, note = 0.0, ''
            if name.endswith('mask.final_binary'):
                clear = reference.get(name.replace('final_binary', 'final_logits'))
                if clear is not None:
                    note = f'{int((difference > 0).sum())} of {difference.numel()} pixels differ'
                    difference = difference * (clear.abs() > LOGIT_TOLERANCE)
            elif expected.is_floating_point():
                tolerance = LOGIT_TOLERANCE if name.endswith(_LOGITS) else \
                    FEATURE_TOLERANCE * max(1.0, float(expected.abs().max()))
            worst = float(difference.max()) if difference.numel() else 0.0
            # A NaN must fail: no comparison with it is true.
            rows.append(Row(name, worst, tolerance, worst <= tolerance, note))
    return rows


def check_fixture(directory: str | os.PathLike) -> list[Row]:
    """Load a fixture folder, recompute and compare (CPU, float32).

    Raises:
        InputError: a missing or damaged file.
    """
    directory = Path(directory)
    path = directory / 'inputs.json'
    try:
        inputs = json.loads(path.read_text(encoding='utf-8'))
        reference = load_file(directory / 'reference.safetensors')
        image = Image.open(directory / inputs.get('image', 'image.png'))
        image.load()
    except FileNotFoundError as error:
        raise InputError(f'{error.filename or directory / "reference.safetensors"}: missing; give a folder in the '
                         f'format of the parity fixtures') from None
    except (ValueError, OSError, SafetensorError) as error:
        raise InputError(f'{directory}: not a readable parity fixture ({error})') from None
    missing = [key for key in ('question', 'answer') if key not in inputs]
    if missing:
        raise InputError(f'{path}: {missing[0]} is missing')
    limits = {key: inputs[key] for key in ('min_pixels', 'max_pixels') if key in inputs}
    model = load_checkpoint(directory)
    pre = Sa2VAPreprocessor.from_pretrained(directory, **limits)
    return compare(reference, recompute(model, pre, image, inputs))


def report(rows: list[Row]) -> str:
    """A table: name, max absolute difference, tolerance, verdict; a summary line last."""
    width = max(len(row.name) for row in rows)
    verdict = {True: 'pass', False: 'FAIL', None: 'skip'}
    lines = [f'{"tensor":<{width}}  {"max |diff|":>10}  {"tolerance":>10}  verdict']
    for row in rows:
        numbers = ['-' if x is None else f'{x:.2e}' for x in (row.max_abs_diff, row.tolerance)]
        lines.append(f'{row.name:<{width}}  {numbers[0]:>10}  {numbers[1]:>10}  {verdict[row.passed]}'
                     + (f'  ({row.note})' if row.note else ''))
    count = {key: sum(row.passed is key for row in rows) for key in verdict}
    lines.append(f'{count[True]} passed, {count[False]} failed, {count[None]} skipped')
    return '\n'.join(lines)


def as_json(rows: list[Row]) -> str:
    """The rows as a JSON object: ``passed`` over all and ``tensors``."""
    return json.dumps(dict(passed=all(row.passed is not False for row in rows), tensors=[asdict(r) for r in rows]),
                      indent=1) + '\n'

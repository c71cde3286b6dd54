"""Sa2VA under mmengine's runner: loading, what is trainable, prediction, what a checkpoint of a run holds."""
from __future__ import annotations

import difflib
import inspect
from typing import Mapping

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS

from sa2va_dpo.models.checkpoint import default_dtype, is_released_size, load_checkpoint, read_again

from .compiled import compilation, compile_layers
from .quantised import check_quantisation, quantised_parts, quantiser
from .sa2va import Sa2VAModel
from .tiled import image_logits
from .trainable import (
    checkpoint_activations,
    checkpointed_parts,
    normalise_switches,
    parameter_groups,
    set_trainable,
    store_trainable_as,
)

_DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}
# What has a meaning only where something is trained.
_TRAINING_ONLY = ('trainable_dtype', 'activation_checkpointing', 'compile')
# Values of activation_checkpointing that leave it to the size of the checkpoint and to the memory.
_BY_MEMORY = (None, 'auto')


@MODELS.register_module()
class Sa2VARunModel(BaseModel):
    """A Sa2VA checkpoint that predicts masks; its siblings with a loss build on it.

    Args:
        checkpoint: directory in the released Hugging Face layout, or an adapter on one (merged where something is
            trained).
        trainable: see :func:`sa2va_dpo.models.trainable.set_trainable`; ``None`` means inference: everything is
            frozen and ``state_dict()`` is empty.
        dtype: ``'float32'`` or ``'bfloat16'``: in which the weights are loaded. ``None``: float32 where something is
            trained, else what :func:`sa2va_dpo.models.checkpoint.default_dtype` says. DeepSpeed's bf16 casts them
            anyway.
        trainable_dtype: dtype in which trained tensors are kept; None: ``dtype``. ``dtype='bfloat16'`` with
            ``trainable_dtype='float32'`` halves the memory of what is frozen while the optimiser's steps stay exact;
            the policy then computes under bfloat16 autocast. For single-device strategies (DeepSpeed does this by
            itself).
        activation_checkpointing: parts whose layers keep only their inputs for the backward pass, such as
            ``dict(llm=True, sam2_encoder=True)``; see :func:`sa2va_dpo.models.trainable.checkpoint_activations`.
            ``None`` or ``'auto'``: every part of a checkpoint of released size, none of a small one; a run of
            ``Sa2VARunner`` on a GPU then lets those parts keep everything that fit (``engine/activation_hook.py``).
        llm_quantisation: ``'nf4'`` (4 bits) or ``'int8'``: the language model's matrices in memory, where it is frozen
            or trained through LoRA (``models/quantised.py``). Needs a GPU as ``device`` and the extra ``quantised``.
        vision_quantisation: the same for the vision tower, which of the largest checkpoints takes a fifth.
        compile: True, or ``dict(parts=['llm', 'vision', 'sam2_encoder'], backend='inductor', mode=None)``: transformer
            layers compiled by torch.compile in the first steps; see :func:`sa2va_dpo.models.compiled.compilation`.
            ``None``: not.
        with_mllm: False leaves the language model and its vision tower on the disk: for batches that bring their [SEG]
            states (docs/speed.md).
        device: where the weights go as they are read, so that they never are in host memory as a whole.
        policy: a ``Sa2VAModel`` to use in place of the checkpoint's, for callers that made one in memory.

    Attributes:
        checkpointing_by_memory: whether parts that fit may keep their activations: a released size, nothing chosen.

    Raises:
        ValueError: an unknown setting or one without effect, named with the nearest known name, before anything is
            read.
        InputError: the checkpoint cannot be used, or nothing here can compile.
    """

    checkpointing_by_memory = False

    def __init__(self, checkpoint: str, trainable: Mapping | str | None = None, *, dtype: str | None = None,
                 trainable_dtype: str | None = None, activation_checkpointing: Mapping[str, bool] | str | None = None,
                 llm_quantisation: str | None = None, vision_quantisation: str | None = None,
                 compile: bool | Mapping | None = None,
                 with_mllm: bool = True, device: str = 'cpu', policy: Sa2VAModel | None = None,
                 data_preprocessor: dict | None = None, **unknown) -> None:
        Sa2VARunModel.check.__func__(type(self), dict(
            unknown, checkpoint=checkpoint, trainable=trainable, dtype=dtype, trainable_dtype=trainable_dtype,
            activation_checkpointing=activation_checkpointing, llm_quantisation=llm_quantisation,
            vision_quantisation=vision_quantisation, compile=compile, policy=policy))
        super().__init__(data_preprocessor=data_preprocessor)
        self.checkpoint = checkpoint
        quantised = quantised_parts(dict(llm_quantisation=llm_quantisation, vision_quantisation=vision_quantisation))
        self.compilation = compilation(compile, quantised)
        loaded = _DTYPES[dtype] if dtype is not None else (
            torch.float32 if trainable is not None or policy is not None else default_dtype(checkpoint, device))
        place = quantiser(quantised, checkpoint, device)
        self.policy = policy or load_checkpoint(checkpoint, dtype=loaded, device=device, with_mllm=with_mllm,
                                                merge=trainable is not None, place=place)
        if trainable is None:
            self.policy.requires_grad_(False)
            self.switches: dict[str, dict] = {}
            return
        self.switches = set_trainable(self.policy, trainable)
        if trainable_dtype is not None:
            store_trainable_as(self.policy, _DTYPES[trainable_dtype], loaded)
            source = self.policy.source
            if trainable_dtype != 'bfloat16' and loaded == torch.bfloat16 and source is not None and device != 'meta' \
                    and source.given == source.directory:
                # Training starts from the stored numbers, not from what bfloat16 left of them.
                read_again(self.policy, {name.replace('.base_layer.', '.') for name, p in self.policy.named_parameters()
                                         if p.requires_grad and '.lora_' not in name}, _DTYPES[trainable_dtype])
        if activation_checkpointing in _BY_MEMORY:
            self.checkpointing_by_memory = policy is None and is_released_size(checkpoint)
            activation_checkpointing = dict.fromkeys(checkpointed_parts(), self.checkpointing_by_memory)
        checkpoint_activations(self.policy, activation_checkpointing)
        if self.compilation is not None:
            compile_layers(self.policy, self.compilation)

    @classmethod
    def setting_names(cls) -> list[str]:
        """Names of all settings of this model, its own first."""
        names = [name for kind in cls.__mro__ if issubclass(kind, Sa2VARunModel) and '__init__' in vars(kind)
                 for name, parameter in inspect.signature(kind.__init__).parameters.items()
                 if name != 'self' and parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        return list(dict.fromkeys(names))

    @classmethod
    def check(cls, settings: Mapping) -> None:
        """Check a config's ``model=dict(...)`` (without ``type``) as the constructor will, without reading anything.

        Raises:
            ValueError: a setting that is unknown, without effect or not among its values; names it.
        """
        known = cls.setting_names()
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f'did you mean {near[0]}?' if near else f'it has {", ".join(known)}'
                raise ValueError(f'{name}: {cls.__name__} has no such setting; {hint}')
        for name in ('dtype', 'trainable_dtype'):
            if settings.get(name) is not None and settings[name] not in _DTYPES:
                raise ValueError(f'{name}: {settings[name]!r} is not one of {", ".join(_DTYPES)}')
        trainable = settings.get('trainable')
        quantised = quantised_parts(settings)
        check_quantisation(quantised, trainable)
        compilation(settings.get('compile'), quantised)
        if trainable is not None:
            normalise_switches(trainable)
            if settings.get('activation_checkpointing') not in _BY_MEMORY:
                checkpointed_parts(settings['activation_checkpointing'])
            return
        for name in _TRAINING_ONLY:
            if settings.get(name) is not None:
                raise ValueError(f'{name}: has no effect, for trainable is None and nothing is trained; leave it out')

    def init_weights(self) -> None:
        """Keep the loaded weights: mmengine calls this on every model, transformers' own would draw new ones."""

    def parameter_groups(self) -> list[dict]:
        """Trainable parameters by part, see :func:`sa2va_dpo.models.trainable.parameter_groups`."""
        return parameter_groups(self.policy, self.switches)

    def trainable_names(self) -> set[str]:
        """Names of the tensors that a checkpoint of this run holds."""
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def state_dict(self, *args, **kwargs):
        """Trainable tensors only: what is frozen is in the start checkpoint, to which the run's config points."""
        full = super().state_dict(*args, **kwargs)
        names = {kwargs.get('prefix', '') + name for name in self.trainable_names()}
        for name in [name for name in full if name not in names]:
            del full[name]
        return full

    def forward(self, batch: dict, mode: str = 'tensor', **targets):
        """mmengine's one entry.

        ``mode='tensor'``: a :class:`MaskOutput`. ``mode='loss'``: the dict of losses and logs.
        ``mode='predict'``: a list of dicts with ``pred_mask`` (bool H x W, numpy) and what the batch held
        beside it: ``gt_mask``, ``image_id``, ``image``.
        """
        if mode == 'tensor':
            return self.policy(batch)
        if mode == 'loss':
            return self.loss(batch, **targets)
        if mode == 'predict':
            return self.predict(batch, **targets)
        raise ValueError(f'mode {mode!r} must be "tensor", "loss" or "predict"')

    def loss(self, batch: dict, **targets) -> dict[str, torch.Tensor]:
        """Of the siblings.

        Raises:
            NotImplementedError: this is the model without a loss.
        """
        raise NotImplementedError(f'{type(self).__name__} has no loss: it predicts')

    @torch.no_grad()
    def predict(self, batch: dict, gt_mask=None, image_id=None, image=None, field_of_view=None,
                logits: bool = False) -> list[dict]:
        """Binary masks at the images' own sizes (sigmoid > 0.5, that is logit > 0); see :meth:`forward`.

        Args:
            logits: also give ``logits``, float32 [H, W].
        """
        samples = []
        for index, (values, _) in enumerate(image_logits(self.policy, batch)):
            sample = dict(pred_mask=(values[0] > 0).cpu().numpy())
            if logits:
                sample['logits'] = values[0].float().cpu().numpy()
            for name, given in (('gt_mask', gt_mask), ('image_id', image_id), ('image', image),
                                ('field_of_view', field_of_view)):
                if given is not None and given[index] is not None:
                    sample[name] = given[index]
            samples.append(sample)
        return samples


def checked_score_size(score_size: int | None) -> int | None:
    """The side of the scoring square as it was given.

    Raises:
        ValueError: neither None nor a whole number of at least 1.
    """
    if score_size is not None and (isinstance(score_size, bool) or not isinstance(score_size, int) or score_size < 1):
        raise ValueError(f'score_size: {score_size!r} must be a whole number of pixels, or None for the SAM2 input '
                         f'size')
    return score_size


def model_class(settings: Mapping) -> type[Sa2VARunModel]:
    """The class of a config's ``model=dict(type=..., ...)``.

    Raises:
        ValueError: no ``type``, or not one of the run models.
    """
    name = settings.get('type')
    found = MODELS.get(name) if isinstance(name, str) else name
    if not (isinstance(found, type) and issubclass(found, Sa2VARunModel)):
        raise ValueError(f'type: {name!r} is none of Sa2VADPOModel, Sa2VASegModel, Sa2VARunModel')
    return found


def check_model(settings: Mapping) -> None:
    """Check a config's ``model=dict(type=..., ...)`` before anything is read; raises ValueError that begins with the
    setting's name."""
    model_class(settings).check({name: value for name, value in settings.items() if name != 'type'})


def inference_model(settings: Mapping, device: str = 'cpu') -> Sa2VARunModel:
    """The model of a run's config for prediction alone: no loss, no reference, weights in
    :func:`sa2va_dpo.models.checkpoint.default_dtype`, quantised as in training; it takes the tensors that the
    run saved.

    Raises:
        ValueError: as :func:`check_model`.
        InputError: the checkpoint cannot be used.
    """
    check_model(settings)
    checkpoint = settings['checkpoint']
    names = {dtype: name for name, dtype in _DTYPES.items()}
    return Sa2VARunModel(checkpoint, settings.get('trainable'), dtype=names[default_dtype(checkpoint, device)],
                         device=device, activation_checkpointing={} if settings.get('trainable') else None,
                         **{name: settings.get(name) for name in ('llm_quantisation', 'vision_quantisation')})

"""Multimodal language models behind Sa2VA: one file per family, one small interface (:mod:`.base`)."""
from .base import MultimodalLLM
from .families import build_mllm, check_config, family_of, hidden_size_of

__all__ = ['MultimodalLLM', 'build_mllm', 'check_config', 'family_of', 'hidden_size_of']

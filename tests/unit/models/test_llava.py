"""Sa2VA on LLaVA-1.5: the released names, and the same numbers as two other ways to compute it."""
import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import export_checkpoint, load_checkpoint
from sa2va_dpo.models.checkpoint.upstream_pth import released_name
from sa2va_dpo.models.generate import generate
from sa2va_dpo.models.trainable import parameter_groups, set_trainable

TOWER, TEXT = 'model.model.vision_tower.vision_model.', 'model.model.language_model.'


@pytest.fixture(scope='module')
def checkpoint(llava_checkpoint):
    config = json.loads((llava_checkpoint / 'config.json').read_text())
    return llava_checkpoint, load_file(llava_checkpoint / 'model.safetensors'), config


@pytest.fixture(scope='module')
def parts(checkpoint):
    return load_checkpoint(checkpoint[0]), Sa2VAPreprocessor.from_pretrained(checkpoint[0])


@pytest.fixture(scope='module')
def image():
    return np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8)


def by_hand(tensors, config, ids, pixels):
    """States ``[L, D]`` after the final norm, from the released tensors and nothing of ours."""
    vision, text = config['vision_config'], config['text_config']

    def linear(x, name):
        return F.linear(x, tensors[name + '.weight'], tensors.get(name + '.bias'))

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], tensors[name + '.weight'], tensors[name + '.bias'], 1e-5)

    def rms(x, name):
        return x * (x.pow(2).mean(-1, keepdim=True) + text['rms_norm_eps']).rsqrt() * tensors[name + '.weight']

    def heads(x, n):
        return x.unflatten(-1, (n, -1)).transpose(0, 1)

    x = F.conv2d(pixels, tensors[TOWER + 'embeddings.patch_embedding.weight'], stride=14).flatten(2).mT[0]
    x = torch.cat([tensors[TOWER + 'embeddings.class_embedding'][None], x])
    x = norm(x + tensors[TOWER + 'embeddings.position_embedding.weight'], TOWER + 'pre_layrnorm')
    for i in range(vision['num_hidden_layers'] - 1):
        layer = f'{TOWER}encoder.layers.{i}.'
        y = norm(x, layer + 'layer_norm1')
        q, k, v = (heads(linear(y, f'{layer}self_attn.{n}_proj'), vision['num_attention_heads']) for n in 'qkv')
        y = ((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + linear(y, layer + 'self_attn.out_proj')
        y = linear(norm(x, layer + 'layer_norm2'), layer + 'mlp.fc1')
        x = x + linear(y * torch.sigmoid(1.702 * y), layer + 'mlp.fc2')
    projector = 'model.model.multi_modal_projector.linear_'
    tokens = linear(F.gelu(linear(x[1:], projector + '1')), projector + '2')

    x = tensors[TEXT + 'embed_tokens.weight'][ids].clone()
    x[ids == config['image_token_index']] = tokens
    n, length = text['num_attention_heads'], len(ids)
    half = text['hidden_size'] // n // 2
    angle = torch.arange(length)[:, None] * text['rope_theta'] ** -(torch.arange(half) / half)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)

    def turn(t):
        return t * cos + torch.cat([-t[..., half:], t[..., :half]], -1) * sin

    mask = torch.full((length, length), -math.inf).triu(1)
    for i in range(text['num_hidden_layers']):
        layer = f'{TEXT}layers.{i}.'
        y = rms(x, layer + 'input_layernorm')
        q, k, v = (heads(linear(y, f'{layer}self_attn.{m}_proj'), n) for m in 'qkv')
        y = ((turn(q) @ turn(k).mT / math.sqrt(2 * half) + mask).softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + linear(y, layer + 'self_attn.o_proj')
        y = rms(x, layer + 'post_attention_layernorm')
        x = x + linear(F.silu(linear(y, layer + 'mlp.gate_proj')) * linear(y, layer + 'mlp.up_proj'),
                       layer + 'mlp.down_proj')
    return rms(x, TEXT + 'norm')


def test_states_are_those_worked_out_from_the_released_tensors(checkpoint, parts, image):
    model, pre = parts
    batch = pre.collate([pre(image, 'Where is the vessel?')])
    with torch.no_grad():
        ours = model.mllm(batch)[0]
    expected = by_hand(checkpoint[1], checkpoint[2], batch['input_ids'][0], batch['pixel_values'])
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)
    assert int(batch['image_token_mask'].sum()) == 4


@pytest.fixture(scope='module')
def upstream(checkpoint):
    """The class that upstream's model is made of, in transformers' own code, with the released tensors."""
    _, tensors, config = checkpoint
    text = dict(config['text_config'], vocab_size=config['vocab_size'])
    own = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
        text_config=text, vision_config=config['vision_config'],
        **{k: config[k] for k in ('vision_feature_layer', 'vision_feature_select_strategy', 'projector_hidden_act')},
        image_token_index=config['image_token_index'], image_token_id=config['image_token_index'],
        tie_word_embeddings=False))
    names = own.state_dict()
    # transformers 5 has taken one level out of CLIP's names; the released ones are those of 4.57.
    flat = {k.replace('vision_tower.vision_model.', 'vision_tower.') if 'model.vision_tower.embeddings.class_embedding'
            in names else k: v for k, v in ((k.removeprefix('model.'), v) for k, v in tensors.items()
                                            if k.startswith('model.'))}
    own.load_state_dict(flat, strict=True)
    return own.eval()


def test_states_and_text_are_those_of_transformers_own_llava(checkpoint, parts, image, upstream):
    model, pre = parts
    sample = pre(image, 'Where is the vessel?')
    batch = pre.collate([sample])
    with torch.no_grad():
        theirs = upstream(input_ids=batch['input_ids'], pixel_values=batch['pixel_values'], output_hidden_states=True)
        torch.testing.assert_close(model.mllm(batch), theirs.hidden_states[-1], atol=2e-5, rtol=1e-4)
        prompt = pre.encode_question('Where is the vessel?', num_image_tokens=4)
        asked = pre.collate([dict(input_ids=prompt, pixel_values=sample['pixel_values'], original_size=(40, 56),
                                  sam_pixel_values=sample['sam_pixel_values'])])
        made = generate(model, asked, model.source.vocabulary_head(), seg_token_id=pre.seg_token_id, end_token_ids=(),
                        max_new_tokens=8)
        expected = upstream.generate(input_ids=prompt[None], pixel_values=sample['pixel_values'], max_new_tokens=8,
                                     do_sample=False, eos_token_id=None, attention_mask=torch.ones_like(prompt)[None])
    assert made.token_ids.tolist() == expected[0, -8:].tolist()


def test_pixels_are_clips(parts, image):
    model, pre = parts
    pixels = pre.encode_image(image)['pixel_values']
    assert pixels.shape == (1, 3, 28, 28)
    flat = np.zeros((30, 30, 3), np.uint8)
    flat[:] = (10, 120, 250)
    want = (np.array([10, 120, 250]) / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(pre.encode_image(flat)['pixel_values'][0, :, 3, 3], want, atol=1e-6)


def test_export_is_the_same_bytes_and_training_moves_what_it_should(checkpoint, image, tmp_path):
    out, before, _ = checkpoint
    model, pre = load_checkpoint(out), Sa2VAPreprocessor.from_pretrained(out)
    same = export_checkpoint(model, out, tmp_path / 'same')
    assert (same / 'model.safetensors').read_bytes() == (out / 'model.safetensors').read_bytes()
    switches = set_trainable(model, dict(llm='lora', vision='lora', vision_projector='full', projector='full',
                                         mask_decoder='full'))
    groups = parameter_groups(model, switches)
    optimiser = torch.optim.AdamW([dict(params=[p for _, p in g['params']]) for g in groups], lr=1e-2)
    batch = pre.collate([pre(image, 'Vessel?')])
    first = None
    for _ in range(4):
        loss = F.binary_cross_entropy_with_logits(model(batch).low_res, torch.ones(1, 32, 32))
        first = loss.item() if first is None else first
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.9 * first
    after = load_file(export_checkpoint(model, out, tmp_path / 'trained') / 'model.safetensors')
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert 'model.model.multi_modal_projector.linear_1.weight' in changed
    assert f'{TEXT}layers.0.self_attn.q_proj.weight' in changed
    assert f'{TOWER}encoder.layers.0.self_attn.out_proj.weight' in changed
    # Behind the layer that is read: carried through.
    behind = (f'{TOWER}encoder.layers.2.', f'{TOWER}post_layernorm', 'model.lm_head')
    assert not any(k.startswith(behind) for k in changed)


def test_vicunas_turns_open_with_the_beginning_and_close_with_the_end_of_a_text(checkpoint, tmp_path):
    """Sentencepiece pieces and special ids put together by hand, as upstream's training code puts them."""
    sentencepiece = pytest.importorskip('sentencepiece')
    (tmp_path / 'corpus.txt').write_text('\n'.join(['USER: where is it ASSISTANT: Sure, it is.', 'Is that all?'] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / 'corpus.txt'), model_prefix=str(tmp_path / 'tokenizer'), vocab_size=60, model_type='bpe',
        hard_vocab_limit=False, minloglevel=2)
    for name in ('config.json', 'sam2_dims.json'):
        shutil.copy(checkpoint[0] / name, tmp_path / name)
    sp = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / 'tokenizer.model'))
    size = sp.vocab_size()
    added = {str(size + i): dict(content=t, special=True, normalized=False, lstrip=False, rstrip=False,
                                 single_word=False) for i, t in enumerate(('<image>', '<pad>', '[SEG]'))}
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(dict(
        tokenizer_class='LlamaTokenizer', added_tokens_decoder=added, bos_token='<s>', eos_token='</s>',
        unk_token='<unk>', pad_token='<pad>')))
    pre = Sa2VAPreprocessor.from_pretrained(tmp_path)
    made = pre.encode_conversation([('where is it', 'Sure, [SEG].'), ('Is that all?', '[SEG].')], num_image_tokens=2,
                                   truncate_after_seg=False)
    image, _, seg = range(size, size + 3)
    first = [sp.bos_id(), *sp.encode('USER: '), image, image, *sp.encode('\nwhere is it ASSISTANT:')]
    answer = [*sp.encode('Sure, '), seg, *sp.encode('.'), sp.eos_id()]
    second = [sp.bos_id(), *sp.encode('USER: Is that all? ASSISTANT:')]
    end = [seg, *sp.encode('.'), sp.eos_id()]
    gap = sp.encode('\n')
    assert made['input_ids'].tolist() == [*first, *answer, *gap, *second, *end, *gap]
    assert made['labels'].tolist() == [*[-100] * len(first), *answer, *[-100] * (len(gap) + len(second)), *end,
                                       *[-100] * len(gap)]
    assert pre.end_token_ids == {sp.eos_id()}
    with pytest.raises(InputError, match='</s>'):
        pre.encode_question('where</s> is it', num_image_tokens=2)


@pytest.mark.parametrize('trainers, released', [
    ('mllm.model.base_model.model.model.language_model.layers.0.self_attn.q_proj.weight',
     'model.model.language_model.layers.0.self_attn.q_proj.weight'),
    ('mllm.model.base_model.model.lm_head.weight', 'model.lm_head.weight')])
def test_the_trainers_names_lead_to_the_released_ones(checkpoint, trainers, released):
    assert released_name(trainers, family_is_qwen=True) == released and released in checkpoint[1]


@pytest.mark.parametrize('field, value', [('vision_feature_layer', -1), ('vision_feature_select_strategy', 'full')])
def test_another_way_to_read_the_tower_is_refused(checkpoint, tmp_path, field, value):
    source = tmp_path / 'c'
    shutil.copytree(checkpoint[0], source)
    (source / 'config.json').write_text(json.dumps({**checkpoint[2], field: value}))
    with pytest.raises(InputError, match=field):
        load_checkpoint(source)

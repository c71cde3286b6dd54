"""InternLM2 and InternViT-6B arithmetic, re-derived here in plain torch straight from the released tensors."""
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import export_checkpoint, init_checkpoint, load_checkpoint
from sa2va_dpo.models.checkpoint.keys_mllm import interleaved_qkv

HEADS, KV, WIDTH = 4, 2, 64


@pytest.fixture(scope='module')
def fixture_dir(shared_dir):
    return shared_dir / 'fixtures/sa2va_parity/internvl_qwen2'


@pytest.fixture(scope='module')
def checkpoint(fixture_dir, tmp_path_factory):
    """A small checkpoint of the 26B kind: InternLM2 and a vision tower with RMSNorm and query/key norms."""
    config = json.loads((fixture_dir / 'config.json').read_text())
    config['llm_config'] = dict(architectures=['InternLM2ForCausalLM'], vocab_size=568, hidden_size=WIDTH,
                                intermediate_size=96, num_hidden_layers=2, num_attention_heads=HEADS,
                                num_key_value_heads=KV, rms_norm_eps=1e-5, rope_theta=1e6, bias=False,
                                max_position_embeddings=2048, rope_scaling=dict(type='dynamic', factor=2.0))
    config['vision_config'].update(norm_type='rms_norm', qk_normalization=True, qkv_bias=False, layer_norm_eps=1e-5)
    config['template'] = 'internlm2_chat'
    dims = json.loads((fixture_dir / 'sam2_dims.json').read_text())
    out = init_checkpoint(config, dims, fixture_dir, tmp_path_factory.mktemp('c') / 'x', seed=5)
    # Norm weights of one hide a wrong or missing norm.
    tensors, generator = load_file(out / 'model.safetensors'), torch.Generator().manual_seed(0)
    for key, tensor in tensors.items():
        if 'norm' in key and tensor.ndim == 1:
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
    from safetensors.torch import save_file
    save_file(tensors, out / 'model.safetensors', metadata={'format': 'pt'})
    return out, tensors


def rms(x, weight, eps=1e-5):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def rope(x, theta=1e6):
    """[heads, L, d]: pairs (i, i + d/2) turned by position * theta^(-2i/d)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * theta ** (-torch.arange(half) * 2.0 / x.shape[-1])
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def internlm2(t, x):
    """Hidden states [L, D] of embeddings [L, D]; wqkv read head group by head group."""
    length, d = x.shape[0], WIDTH // HEADS
    causal = torch.full((length, length), float('-inf')).triu(1)
    for i in range(2):
        p = f'language_model.model.layers.{i}.'
        normed = rms(x, t[p + 'attention_norm.weight'])
        heads = []
        for group in range(KV):
            rows = t[p + 'attention.wqkv.weight'].view(KV, HEADS // KV + 2, d, WIDTH)[group]
            *queries, key, value = (normed @ r.T for r in rows)
            for query in queries:
                q, k = rope(query[None])[0], rope(key[None])[0]
                heads.append((q @ k.T / d ** 0.5 + causal).softmax(-1) @ value)
        x = x + torch.cat(heads, -1) @ t[p + 'attention.wo.weight'].T
        h = rms(x, t[p + 'ffn_norm.weight'])
        gate, up, down = (t[f'{p}feed_forward.{w}.weight'] for w in ('w1', 'w3', 'w2'))
        x = x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T
    return rms(x, t['language_model.model.norm.weight'])


def intern_vit(t, pixels, heads=4):
    """Patch states [N, 1 + P, D]."""
    p = 'vision_model.embeddings.'
    x = F.conv2d(pixels, t[p + 'patch_embedding.weight'], t[p + 'patch_embedding.bias'], stride=14)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([t[p + 'class_embedding'].expand(len(x), 1, -1), x], 1) + t[p + 'position_embedding']
    for i in range(2):
        p = f'vision_model.encoder.layers.{i}.'
        q, k, v = (rms(x, t[p + 'norm1.weight']) @ t[p + 'attn.qkv.weight'].T).chunk(3, -1)
        q, k = rms(q, t[p + 'attn.q_norm.weight']), rms(k, t[p + 'attn.k_norm.weight'])
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
        y = ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).softmax(-1) @ v
        y = y.transpose(1, 2).flatten(2) @ t[p + 'attn.proj.weight'].T + t[p + 'attn.proj.bias']
        x = x + t[p + 'ls1'] * y
        h = F.gelu(rms(x, t[p + 'norm2.weight']) @ t[p + 'mlp.fc1.weight'].T + t[p + 'mlp.fc1.bias'])
        x = x + t[p + 'ls2'] * (h @ t[p + 'mlp.fc2.weight'].T + t[p + 'mlp.fc2.bias'])
    return x


def test_decoder_equals_plain_internlm2(checkpoint):
    out, tensors = checkpoint
    x = torch.randn(12, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load_checkpoint(out).mllm.language_model(inputs_embeds=x[None]).last_hidden_state[0]
    torch.testing.assert_close(ours, internlm2(tensors, x), atol=1e-5, rtol=1e-5)


def test_vision_tower_equals_plain_internvit(checkpoint):
    out, tensors = checkpoint
    pixels = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load_checkpoint(out).mllm.patch_states(pixels)
    torch.testing.assert_close(ours, intern_vit(tensors, pixels), atol=2e-5, rtol=1e-5)


def test_round_trip_is_the_same_bytes(checkpoint, tmp_path):
    out = checkpoint[0]
    again = export_checkpoint(load_checkpoint(out), out, tmp_path / 'again')
    assert (again / 'model.safetensors').read_bytes() == (out / 'model.safetensors').read_bytes()


def test_interleaving_by_hand():
    # 4 query heads in 2 groups, head_dim 1: rows are (q0, q1, k0, v0, q2, q3, k1, v1).
    group = interleaved_qkv('wqkv', ['q', 'k', 'v'], 4, 2)
    fused = torch.arange(8.)[:, None]
    q, k, v = group.load([fused])
    assert [x.flatten().tolist() for x in (q, k, v)] == [[0, 1, 4, 5], [2, 6], [3, 7]]
    assert torch.equal(group.dump([q, k, v])[0], fused)


def test_vocabulary_head_is_the_output_layer(checkpoint):
    out, tensors = checkpoint
    assert torch.equal(load_checkpoint(out).source.vocabulary_head(), tensors['language_model.output.weight'])


# -- sentencepiece tokenizer ------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def tokenizer_dir(checkpoint, fixture_dir, tmp_path_factory):
    sentencepiece = pytest.importorskip('sentencepiece')
    target = tmp_path_factory.mktemp('sp')
    corpus = target / 'corpus.txt'
    corpus.write_text('\n'.join(['Please segment the blood vessels in this image.', 'user assistant Sure, it is',
                                 'where is the catheter tip? show me'] * 20))
    sentencepiece.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(target / 'tokenizer'), vocab_size=80,
                                             byte_fallback=False, hard_vocab_limit=False, minloglevel=2)
    for name in ('config.json', 'sam2_dims.json'):
        (target / name).write_bytes((checkpoint[0] / name).read_bytes())
    size = sentencepiece.SentencePieceProcessor(model_file=str(target / 'tokenizer.model')).vocab_size()
    tokens = ['<|im_start|>', '<|im_end|>', '<img>', '</img>', '<IMG_CONTEXT>', '[SEG]']
    added = {str(size + i): dict(content=t, special=True, normalized=False, lstrip=False, rstrip=False,
                                 single_word=False) for i, t in enumerate(tokens)}
    (target / 'tokenizer_config.json').write_text(json.dumps(dict(
        tokenizer_class='InternLM2Tokenizer', auto_map={'AutoTokenizer': ['tokenization_internlm2.T', None]},
        added_tokens_decoder=added, bos_token='<s>', eos_token='</s>', unk_token='<unk>', pad_token='</s>')))
    (target / 'tokenization_internlm2.py').write_text('raise SystemExit("code of a checkpoint was run")\n')
    return target


def test_prompt_begins_with_one_bos_and_pieces_are_sentencepiece(tokenizer_dir):
    import sentencepiece
    pre = Sa2VAPreprocessor.from_pretrained(tokenizer_dir)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_dir / 'tokenizer.model'))
    ids = pre.encode_text('where is it', num_image_tokens=2, truncate_after_seg=False)['input_ids'].tolist()
    base = model.vocab_size()
    start, end, img, img_end, ctx, seg = range(base, base + 6)
    expected = [model.bos_id(), start, *model.encode('user\n'), img, ctx, ctx, img_end, *model.encode('\nwhere is it'),
                end, *model.encode('\n'), start, *model.encode('assistant\n'), *model.encode('Sure, '), seg,
                *model.encode('.'), end, *model.encode('\n')]
    assert ids == expected
    assert ids.count(model.bos_id()) == 1 and pre.end_token_ids == {end, model.eos_id()}


def test_unknown_template_is_an_input_error(tokenizer_dir):
    config = json.loads((tokenizer_dir / 'config.json').read_text())
    (tokenizer_dir / 'config.json').write_text(json.dumps({**config, 'template': 'phi3_chat'}))
    with pytest.raises(InputError, match='phi3_chat'):
        Sa2VAPreprocessor.from_pretrained(tokenizer_dir)
    (tokenizer_dir / 'config.json').write_text(json.dumps(config))

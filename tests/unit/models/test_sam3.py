"""SAM 3's tracker in the place of SAM2: the released names, and the masks that the released tensors give by hand."""
import json
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from sa2va_dpo.common.errors import InputError
from sa2va_dpo.datasets.preprocess import Sa2VAPreprocessor
from sa2va_dpo.models.checkpoint import (
    copy_with_sam_size,
    export_checkpoint,
    load_checkpoint,
    read_sam2_dims,
    stream_checkpoint,
)
from sa2va_dpo.models.grounding import complete_dims
from sa2va_dpo.models.sam3 import Sam3TrackerModel
from sa2va_dpo.models.trainable import checkpoint_activations, set_trainable
from sa2va_dpo.models.variants import GROUNDING

P = 'grounding_encoder.sam2_model.'
TRUNK = P + 'backbone.vision_backbone.trunk.'


@pytest.fixture(scope='module')
def checkpoint(sam3_checkpoint):
    return sam3_checkpoint


@pytest.fixture(scope='module')
def image(shared_dir):
    return Image.open(shared_dir / 'fixtures/sa2va_parity/qwen3_vl/image.png')


class Reference:
    """SAM 3's tracker on one image, written from the released tensors, in float64.

    ViT with axial rotary positions: arXiv 2010.11929, 2403.13298; three levels of one map: arXiv 2203.16527; two-way
    decoder: arXiv 2304.02643, 2408.00714.
    """

    def __init__(self, directory):
        self.dims = json.loads((directory / 'sam2_dims.json').read_text())
        tensors = load_file(directory / 'model.safetensors')
        self.t = {k[len(P):]: v.double() for k, v in tensors.items() if k.startswith(P)}

    def linear(self, x, name):
        return F.linear(x, self.t[name + '.weight'], self.t[name + '.bias'])

    def norm(self, x, name, eps=1e-5):
        return F.layer_norm(x, x.shape[-1:], self.t[name + '.weight'], self.t[name + '.bias'], eps)

    @staticmethod
    def rotation(side, step, width):
        """Complex turns ``[side * side, width / 2]``: the first half of the pairs by column, the second by row."""
        pairs = width // 4
        frequency = 10000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
        at = torch.arange(side, dtype=torch.float64) * step
        columns, rows = at.repeat(side), at.repeat_interleave(side)
        return torch.polar(torch.ones(side * side, 2 * pairs, dtype=torch.float64),
                           torch.cat([columns[:, None] * frequency, rows[:, None] * frequency], 1))

    def attention(self, x, name, turns):
        """``x [windows, n, D]``."""
        q, k, v = (y.unflatten(-1, (self.dims['num_heads'], -1)).transpose(1, 2)
                   for y in self.linear(x, name + '.qkv').chunk(3, -1))

        def turn(y):
            return torch.view_as_real(torch.view_as_complex(y.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)

        y = (turn(q) @ turn(k).mT / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.linear(y.transpose(1, 2).flatten(2), name + '.proj')

    def trunk(self, pixels):
        """``[1, 3, S, S]`` -> ``[1, D, g, g]``."""
        base, window = 'backbone.vision_backbone.trunk.', self.dims['window_size']
        x = F.conv2d(pixels.double(), self.t[base + 'patch_embed.proj.weight'], stride=14)
        g = x.shape[-1]
        n = self.dims['pretrain_image_size'] // 14
        table = self.t[base + 'pos_embed'][:, 1:].unflatten(1, (n, n)).permute(0, 3, 1, 2)
        x = x + table.repeat(1, 1, g // n, g // n)
        x = self.norm(x.permute(0, 2, 3, 1), base + 'ln_pre')
        width = self.dims['embed_dim'] // self.dims['num_heads']
        for i in range(self.dims['depth']):
            layer, whole = f'{base}blocks.{i}.', i in self.dims['global_att_blocks']
            y = self.norm(x, layer + 'norm1')
            if whole:
                y = self.attention(y.flatten(1, 2), layer + 'attn', self.rotation(g, window / g, width)).unflatten(
                    1, (g, g))
            else:
                m = g // window
                y = y.reshape(m, window, m, window, -1).transpose(1, 2).reshape(m * m, window * window, -1)
                y = self.attention(y, layer + 'attn', self.rotation(window, 1.0, width))
                y = y.reshape(m, m, window, window, -1).transpose(1, 2).reshape(1, g, g, -1)
            x = x + y
            y = F.gelu(self.linear(self.norm(x, layer + 'norm2'), layer + 'mlp.fc1'))
            x = x + self.linear(y, layer + 'mlp.fc2')
        return x.permute(0, 3, 1, 2)

    def levels(self, pixels):
        x, out = self.trunk(pixels), []
        for i in range(3):
            base = f'backbone.vision_backbone.sam2_convs.{i}.'

            def conv(y, name, f=F.conv2d, **settings):
                return f(y, self.t[base + name + '.weight'], self.t[base + name + '.bias'], **settings)

            up = dict(f=F.conv_transpose2d, stride=2)
            y = conv(F.gelu(conv(x, 'dconv_2x2_0', **up)), 'dconv_2x2_1', **up) if i == 0 else (
                conv(x, 'dconv_2x2', **up) if i == 1 else x)
            out.append(conv(conv(y, 'conv_1x1'), 'conv_3x3', padding=1))
        return out

    def attend(self, q, k, v, name):
        heads = [self.linear(x, f'{name}.{n}_proj').unflatten(-1, (8, -1)).transpose(0, 1)
                 for x, n in zip((q, k, v), 'qkv')]
        y = (heads[0] @ heads[1].mT / math.sqrt(heads[0].shape[-1])).softmax(-1) @ heads[2]
        return self.linear(y.transpose(0, 1).flatten(1), name + '.out_proj')

    def head(self, x, name):
        for i in range(3):
            x = self.linear(x, f'{name}.layers.{i}')
            x = F.relu(x) if i < 2 else x
        return x

    def masks(self, pixels, prompt):
        """``prompt [C]`` -> hypotheses ``[3, 4g, 4g]``, predicted IoU ``[3]``, object score."""
        fine, middle, coarse = self.levels(pixels)
        g, d = coarse.shape[-1], 'sam_mask_decoder.'
        x = coarse[0] + self.t['no_mem_embed'].reshape(-1, 1, 1) + self.t['sam_prompt_encoder.no_mask_embed.weight'][
            0, :, None, None]
        keys = x.flatten(1).T
        at = (torch.arange(g, dtype=torch.float64) + 0.5) / g * 2 - 1
        place = torch.stack([at.repeat(g), at.repeat_interleave(g)], 1)
        angle = 2 * math.pi * place @ self.t['sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix']
        where = torch.cat([angle.sin(), angle.cos()], 1)
        nothing = self.t['sam_prompt_encoder.not_a_point_embed.weight']
        first = torch.cat([self.t[d + 'obj_score_token.weight'], self.t[d + 'iou_token.weight'],
                           self.t[d + 'mask_tokens.weight'], nothing, nothing, prompt.double()[None]])
        queries = first
        for i in range(2):
            layer = f'{d}transformer.layers.{i}.'
            if i == 0:
                queries = self.attend(queries, queries, queries, layer + 'self_attn')
            else:
                q = queries + first
                queries = queries + self.attend(q, q, queries, layer + 'self_attn')
            queries = self.norm(queries, layer + 'norm1')
            queries = self.norm(queries + self.attend(queries + first, keys + where, keys,
                                                      layer + 'cross_attn_token_to_image'), layer + 'norm2')
            y = self.linear(F.relu(self.linear(queries, layer + 'mlp.lin1')), layer + 'mlp.lin2')
            queries = self.norm(queries + y, layer + 'norm3')
            keys = self.norm(keys + self.attend(keys + where, queries + first, queries,
                                                layer + 'cross_attn_image_to_token'), layer + 'norm4')
        queries = self.norm(queries + self.attend(queries + first, keys + where, keys,
                                                  d + 'transformer.final_attn_token_to_image'),
                            d + 'transformer.norm_final_attn')
        x = keys.T.unflatten(1, (g, g))[None]

        def conv(y, name, f=F.conv2d, **settings):
            return f(y, self.t[d + name + '.weight'], self.t[d + name + '.bias'], **settings)

        x = conv(x, 'output_upscaling.0', F.conv_transpose2d, stride=2) + conv(middle, 'conv_s1')
        x = F.gelu(self.norm(x.movedim(1, -1), d + 'output_upscaling.1', 1e-6).movedim(-1, 1))
        x = F.gelu(conv(x, 'output_upscaling.3', F.conv_transpose2d, stride=2) + conv(fine, 'conv_s0'))
        weights = torch.stack([self.head(queries[2 + k], f'{d}output_hypernetworks_mlps.{k}') for k in (1, 2, 3)])
        return ((weights @ x[0].flatten(1)).unflatten(1, x.shape[-2:]),
                self.head(queries[1], d + 'iou_prediction_head').sigmoid()[1:],
                self.head(queries[0], d + 'pred_obj_score_head'))


def test_masks_are_those_worked_out_from_the_released_tensors(checkpoint, image):
    model, pre = load_checkpoint(checkpoint), Sa2VAPreprocessor.from_pretrained(checkpoint)
    assert pre.sam_size == model.sam_size == 168
    batch = pre.collate([pre(image, 'Vessel?')])
    assert batch['sam_pixel_values'].shape == (1, 3, 168, 168)
    reference = Reference(checkpoint)
    with torch.no_grad():
        out = model(batch)
        for ours, level in zip(model.sam2_levels(batch['sam_pixel_values']),
                               reference.levels(batch['sam_pixel_values'])):
            torch.testing.assert_close(ours.double(), level, atol=3e-5, rtol=1e-4)
        masks, iou, score = reference.masks(batch['sam_pixel_values'], out.seg_embedding[0])
    assert out.low_res.shape == (1, 48, 48) and masks.std() > 0.1
    torch.testing.assert_close(out.hypotheses[0].double(), masks, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out.iou_pred[0].double(), iou, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.object_score[0].double(), score, atol=1e-4, rtol=1e-4)
    assert torch.equal(out.low_res[0], out.hypotheses[0, iou.argmax()])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_export_is_the_same_bytes_and_frequencies_stay_exact(checkpoint, tmp_path, dtype):
    model, exact = load_checkpoint(checkpoint, dtype=dtype), load_checkpoint(checkpoint)
    out = export_checkpoint(model, checkpoint, tmp_path / 'out')
    assert (out / 'model.safetensors').read_bytes() == (checkpoint / 'model.safetensors').read_bytes()
    out = export_checkpoint(load_checkpoint(checkpoint, device='meta'), checkpoint, tmp_path / 'unread')
    assert (out / 'model.safetensors').read_bytes() == (checkpoint / 'model.safetensors').read_bytes()
    for (name, a), b in zip(model.to(torch.bfloat16).named_buffers(), dict(exact.named_buffers()).values()):
        assert a.dtype == torch.float32 and torch.equal(a, b), name


def test_training_moves_the_tracker_and_carries_the_rest(checkpoint, image, tmp_path):
    before = load_file(checkpoint / 'model.safetensors')
    model, pre = load_checkpoint(checkpoint), Sa2VAPreprocessor.from_pretrained(checkpoint)
    set_trainable(model, dict(sam2_encoder='lora', sam2_neck='full', mask_decoder='full', projector='full'))
    assert checkpoint_activations(model, dict(sam2_encoder=True)) == model.sam2_dims['depth']
    batch = pre.collate([pre(image, 'Vessel?')])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    model.train()
    for _ in range(4):
        loss = F.binary_cross_entropy_with_logits(model(batch).low_res, torch.ones(1, 48, 48))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    unused = set(model.unused_by_masks())
    still = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None and n not in unused]
    assert still == []
    after = load_file(export_checkpoint(model.eval(), checkpoint, tmp_path / 'out') / 'model.safetensors')
    changed = {k[len(P):] for k in before if k.startswith(P) and not torch.equal(before[k], after[k])}
    assert {'backbone.vision_backbone.trunk.blocks.0.attn.qkv.weight', 'sam_mask_decoder.mask_tokens.weight',
            'backbone.vision_backbone.sam2_convs.2.conv_3x3.weight'} <= changed
    carried = ('backbone.vision_backbone.convs.', 'backbone.vision_backbone.sam2_convs.3.', 'transformer.', 'maskmem',
               'no_obj', 'no_mem_pos', 'obj_ptr', 'mask_downsample', 'backbone.vision_backbone.trunk.pos_embed')
    assert not any(k.startswith(carried) for k in changed)
    assert 'maskmem_backbone.fuser.layers.0.g_weight' in {k[len(P):] for k in after}
    with torch.no_grad():
        torch.testing.assert_close(load_checkpoint(tmp_path / 'out')(batch).low_res, model(batch).low_res, atol=1e-4,
                                   rtol=1e-4)


def test_released_sizes_are_found_by_the_names_of_the_tensors(checkpoint, tmp_path):
    """A released directory states no sizes; shards or one file, the names tell."""
    (tmp_path / 'one').mkdir()
    for name in ('config.json', 'model.safetensors'):
        (tmp_path / 'one' / name).write_bytes((checkpoint / name).read_bytes())
    assert read_sam2_dims(tmp_path / 'one')['image_size'] == 1008
    (tmp_path / 'one/model.safetensors').unlink()
    (tmp_path / 'one/model.safetensors.index.json').write_text(
        json.dumps(dict(weight_map={TRUNK + 'pos_embed': 'model-00001-of-00001.safetensors'})))
    assert read_sam2_dims(tmp_path / 'one') == complete_dims(GROUNDING['Sa2VA-Qwen3-VL-4B-SAM3'])


def test_a_streamed_checkpoint_has_the_same_tensors(checkpoint, tmp_path):
    config, dims = (json.loads((checkpoint / name).read_text()) for name in ('config.json', 'sam2_dims.json'))
    stream_checkpoint(config, dims, checkpoint, tmp_path / 'out', dtype=torch.float32, shard_bytes=1_000_000)
    shards = sorted((tmp_path / 'out').glob('*.safetensors'))
    made = {name: tensor for path in shards for name, tensor in load_file(path).items()}
    given = load_file(checkpoint / 'model.safetensors')
    assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in given.items()}
    assert all(torch.isfinite(v).all() for v in made.values())
    assert load_checkpoint(tmp_path / 'out').sam_size == 168


def test_the_input_size_is_fixed(checkpoint, tmp_path):
    with pytest.raises(InputError, match='SAM 3, whose input size is fixed'):
        copy_with_sam_size(checkpoint, tmp_path / 'out', 1024)


@pytest.mark.parametrize('dims, said', [
    (dict(kind='sam4'), "kind is 'sam4'"), (dict(kind='sam3', stages=[1]), 'unknown field stages'),
    (dict(kind='sam3', image_size=1024), 'multiple of the patch size')])
def test_impossible_sizes_are_named(dims, said):
    with pytest.raises(InputError, match=said):
        complete_dims(dims)


@pytest.mark.skipif(Sam3TrackerModel is not None, reason='this transformers has SAM 3')
def test_without_sam3_one_line_says_which_stack_has_it(shared_dir, tmp_path):
    fixture = shared_dir / 'fixtures/sa2va_parity/qwen3_vl'
    for path in fixture.iterdir():
        if path.name not in ('model.safetensors', 'sam2_dims.json'):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file({TRUNK + 'pos_embed': torch.zeros(1, 577, 1024)}, tmp_path / 'model.safetensors')
    with pytest.raises(InputError, match='SA2VA_DPO_STACK=next') as caught:
        load_checkpoint(tmp_path)
    assert '\n' not in str(caught.value) and str(tmp_path) in str(caught.value)
    # What the images look like to it is known all the same.
    assert Sa2VAPreprocessor.from_pretrained(tmp_path).sam_size == 1008

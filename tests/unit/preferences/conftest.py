"""A policy small enough to work out by hand, and drawn vessels for it."""
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sa2va_dpo.models.sa2va import MaskOutput, Sam2Features
from sa2va_dpo.models.view_geometry import ViewGeometry

SIZE = 32


class FakePolicy(torch.nn.Module):
    """Dark pixels are vessels. The [SEG] embedding shifts the logits; hypotheses differ by a constant."""

    sam_size = SIZE

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.encoded_images = self.decoder_calls = 0

    def encode_image(self, sam_pixel_values):
        self.encoded_images += len(sam_pixel_values)
        low = F.avg_pool2d(sam_pixel_values.mean(1, keepdim=True), 4)
        return Sam2Features(F.avg_pool2d(low, 4), [low, F.avg_pool2d(low, 2)])

    def image_features(self, batch):
        return self.encode_image(batch['sam_pixel_values'])

    def encode_prompt(self, batch):
        return batch['embedding']

    def decode(self, features, embedding, seg_sample_index=None):
        self.decoder_calls += 1
        if seg_sample_index is not None:
            features = features[seg_sample_index]
        grey = 0.7 * features.high_res[0] + 0.3 * F.interpolate(features.image_embed, scale_factor=4)
        low = (0.5 - grey[:, 0]) * 12 + embedding.mean(1)[:, None, None]
        shift = torch.tensor([0.0, 2.0, -2.0])[None, :, None, None]
        iou = torch.tensor([[0.9, 0.6, 0.8]]).expand(len(low), 3)
        return MaskOutput(low, low[:, None] + shift, iou, embedding)


class FakePreprocessor:
    """The image at SIZE x SIZE in 0..1; the embedding tells prompts apart."""

    view, sam_size = ViewGeometry(), SIZE

    def __call__(self, image, prompt):
        assert image.flags.c_contiguous and image.dtype == np.uint8
        picture = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        return dict(sam_pixel_values=torch.from_numpy(picture).permute(2, 0, 1).float() / 255,
                    embedding=torch.tensor([1.0, -1.0, 0.5, -0.5]) + len(prompt) % 5 / 10)

    def fingerprint(self):
        return 'fake'

    def collate(self, samples):
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


@pytest.fixture
def policy():
    return FakePolicy().eval().requires_grad_(False)


@pytest.fixture
def preprocessor():
    return FakePreprocessor()


def draw(seed, size=(40, 56)):
    """A grey image with dark lines, and its ground truth."""
    rng = np.random.default_rng(seed)
    gt = np.zeros(size, np.uint8)
    for _ in range(4):
        ends = [tuple(int(v) for v in rng.integers(0, size[::-1])) for _ in range(2)]
        cv2.line(gt, *ends, 1, int(rng.integers(3, 7)))
    image = 190 - 150 * cv2.GaussianBlur(gt.astype(np.float32), (0, 0), 1.5) + rng.normal(0, 25, size)
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, 2), gt.astype(bool)


@pytest.fixture
def drawing():
    return draw(1)


@pytest.fixture
def folders(tmp_path):
    """images/ with eight images of four patients, gt/, pred/ with two methods."""
    for name in ('images', 'gt', 'pred/good', 'pred/bad'):
        (tmp_path / name).mkdir(parents=True)
    for i in range(8):
        image, gt = draw(i)
        stem = f'Bild ({i // 2}) ä^{"LR"[i % 2]}' if i < 2 else f'scan_{i // 2:02}{"LR"[i % 2]}'
        Image.fromarray(image).save(tmp_path / 'images' / f'{stem}.{"png" if i % 2 else "tif"}')
        Image.fromarray(gt.astype(np.uint8) * 255).save(tmp_path / 'gt' / f'{stem}_mask.png')
        Image.fromarray(cv2.dilate(gt.astype(np.uint8) * 255, np.ones((2, 2)))).save(
            tmp_path / 'pred/good' / f'{stem}.png'
        )
        Image.fromarray(np.roll(gt, 5, 1).astype(np.uint8)).save(tmp_path / 'pred/bad' / f'{stem}_gt.bmp')
    return SimpleNamespace(root=tmp_path, images=str(tmp_path / 'images'), gt=str(tmp_path / 'gt'),
                           pred=str(tmp_path / 'pred'), out=str(tmp_path / 'out'))

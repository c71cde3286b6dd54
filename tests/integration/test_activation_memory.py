"""The real runner measures with an invented memory: the decision is said, and what is trained stays the same."""
import pytest
import torch

from sa2va_dpo.models.checkpoint import read_trained_tensors

pytestmark = pytest.mark.integration

# Any checkpoint counts as a released one. The memory is one of numbers: 3 GiB of weights, graphs of losses of 1 GiB and
# what parts keep. Of each loss the trace says which parts keep everything.
INVENTED = '''
"""A memory for the CPU."""
import os
from contextlib import nullcontext
from mmengine.dist import get_rank
from sa2va_dpo.engine import activation_hook
from sa2va_dpo.models import run_model
from sa2va_dpo.models.sa2va_dpo_model import Sa2VADPOModel

GIB = 2 ** 30
SIZES = dict(llm=17 * GIB, sam2_encoder=5 * GIB)
run_model.is_released_size = lambda directory: True
inner = Sa2VADPOModel.loss


class Meter:
    held = 0
    def start(self): self.held = 0
    def release(self): self.held = 0
    def allocated(self): return 3 * GIB + self.held
    def peak(self): return 5 * GIB
    def room(self): return int(os.environ['ROOM'].split(',')[get_rank()]) * GIB, 30 * GIB
    def bounded(self, extra): return nullcontext()


def loss(self, *args, **kwargs):
    roots = dict(llm=self.policy.mllm.language_model, sam2_encoder=self.policy.sam2.vision_encoder.backbone)
    kept = [part for part, root in roots.items()
            if not any(getattr(module, 'gradient_checkpointing', False) for module in root.modules())]
    METER.held = GIB + sum(SIZES[part] for part in kept)
    with open(os.environ['TRACE'] + str(get_rank()), 'a') as file:
        print('+'.join(kept) or 'none', file=file)
    return inner(self, *args, **kwargs)


METER = Meter()
Sa2VADPOModel.loss = loss
activation_hook.meter_of = lambda device: METER
'''
OPTIONS = ('model.trainable.llm.dropout=0.1', 'cache=None', 'train_cfg.val_interval=100')
PROBE = ['none', 'none', 'llm', 'sam2_encoder']


@pytest.fixture()
def train(cli, run_config, tmp_path):
    (tmp_path / 'invented.py').write_text(INVENTED)
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = [{str(run_config)!r}]\n"
                      "custom_imports = dict(imports=['sa2va_dpo.plugins', 'invented'])\n")

    def run(name, *options, more=(), processes=1, room='40'):
        """(trained tensors, what each loss of process 0 kept, what was printed, lines about activations in the log)."""
        launcher = ['--launcher', 'pytorch'] if processes > 1 else []
        trace = tmp_path / f'{name}.trace'
        done = cli('tools/train.py', config, '--work-dir', tmp_path / name, *launcher, *more, '--cfg-options', *OPTIONS,
                   'default_hooks.checkpoint.interval=2', *options, processes=processes,
                   env=dict(PYTHONPATH=str(tmp_path), ROOM=room, TRACE=str(trace)))
        logs = sorted((tmp_path / name).glob('*/*.log'))
        lines = [line.partition(' - INFO - ')[2] for line in logs[-1].read_text().splitlines()
                 if ' - activations' in line]
        traces = [(tmp_path / f'{name}.trace{rank}').read_text().split() for rank in range(processes)]
        assert all(one == traces[0] for one in traces)
        last = max((tmp_path / name).glob('iter_*.pth'), key=lambda path: int(path.stem[5:]))
        return read_trained_tensors(last), traces[0], done.stdout + done.stderr, lines
    return run


def assert_same(first, second):
    assert first.keys() == second.keys() and first
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize('options, processes', [((), 1), (('deepspeed_on_cpu=True',), 1), ((), 2)],
                         ids=['single', 'deepspeed', 'ddp'])
def test_what_is_measured_decides_and_changes_no_weight(train, options, processes):
    # 2 + 17 + 5 of 40 - 3 for one process; for the other of two, 11 - 3 are enough for SAM2 alone.
    found, trace, said, [line] = train('measured', *options, processes=processes, room='40,11')
    if processes == 1:
        assert trace == [*PROBE, *3 * ['llm+sam2_encoder']]
        assert line == 'activations: kept (a step takes 24.0 GiB, it may take 37.0)'
    else:
        assert trace == [*PROBE, *3 * ['sam2_encoder']]
        assert line.startswith('activations: kept in sam2_encoder, inputs only in llm')
    assert said.count(line) == 1, said[-3000:]
    expected, trace, said, lines = train('all', *options, 'model.activation_checkpointing.llm=False',
                                         processes=processes, room='40,11')
    assert trace == 4 * ['llm+sam2_encoder'] and lines == [] and 'activations:' not in said
    assert_same(found, expected)


def test_a_resumed_run_measures_again(train):
    whole = train('whole')
    assert train('parts', 'train_cfg.max_iters=2')[1] == [*PROBE, 'llm+sam2_encoder']
    found, trace, said, [line] = train('parts', more=['--resume'], room='10')
    assert trace == [*PROBE, 'llm+sam2_encoder', *PROBE, 'sam2_encoder']
    assert line in said and line.startswith('activations, measured again: kept in sam2_encoder, inputs only in llm')
    assert_same(found, whole[0])

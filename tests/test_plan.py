"""Plans for devices that are not here, against counts by hand and real runs."""

import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg import config as jaxseg_config
from jaxseg import (
  parallel,
  plan,
  plan_chips,
  plan_compile,
  plan_costs,
  plan_hlo,
  plan_text,
  workdir,
)
from jaxseg.data import pipeline, sources, splits
from jaxseg.errors import UserError


def tiny(*stages, **mesh):
  config = tiny_config.get_config('nowhere').unlock()
  config.stages = stages
  config.mesh.update({'data': -1} | mesh)
  for stage in stages:
    config[stage].batch_size = 8
    if stage != 'unet':
      config[stage].unlabelled_batch_size = 8
  config.unet.args.net.depth = 1
  return config


def measured(config, stage, compiled=False):
  mesh = parallel.make_mesh(config.mesh.data, config.mesh.model)
  return plan_compile.measure(
    config, stage, 3, mesh, platform='cpu', compiled=compiled
  )


@pytest.mark.parametrize(
  ('text', 'count', 'topology'),
  [
    ('tpu-v5e:64', 64, 'v5e:8x8'),
    ('TPU-v6e:8', 8, 'v6e:2x4'),
    ('tpu-v4:16', 16, 'v4:2x2x4'),
    ('tpu-v5p', 1, 'v5p:1x1x1'),
    ('gpu-h200:24', 24, ''),
    ('cpu:8', 8, ''),
  ],
)
def test_devices(text, count, topology):
  named = plan_chips.parse(text)
  assert (named.count, named.topology) == (count, topology)
  assert named.kind == text.lower().partition(':')[0]
  assert math.prod(map(int, re.findall(r'\d+', topology[3:]))) in (count, 1)


@pytest.mark.parametrize(
  ('text', 'sentence'),
  [
    ('v5e:64', '=v5e:64 names no known chip, expected one of tpu-v4, .*cpu'),
    ('tpu-v5e:', '=tpu-v5e: has no number of chips behind the colon'),
    ('gpu-h100:0', 'expected 1 or more, such as gpu-h100:8'),
    ('cpu:8x8', 'has no number of chips'),
    ('tpu-v5e:48', 'asks for 48 chips, but TPU v5e slices have 1, 4, 8, 16'),
  ],
)
def test_devices_that_do_not_exist(text, sentence):
  with pytest.raises(UserError, match=f'^--devices{sentence}|{sentence}'):
    plan_chips.parse(text)


def conv(x, kernel, stride=1):
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), 'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )  # fmt: skip


def count(step_fn, state, *inputs):
  traced = jax.jit(step_fn).trace(state, *inputs)
  return plan_costs.count(traced.jaxpr, 0)


def test_arithmetic_of_two_convolutions_by_hand():
  def step(state, x):
    def loss(kernels):
      return conv(jax.nn.relu(conv(x, kernels[0])), kernels[1], 2).sum()

    kernels = jax.tree.map(jnp.subtract, state[1], jax.grad(loss)(state[1]))
    return state[0] + 1, kernels

  state = jnp.int32(0), (jnp.ones((3, 3, 3, 8)), jnp.ones((3, 3, 8, 16)))
  found = count(step, state, jnp.ones((2, 16, 16, 3)))
  first = 2 * (2 * 16 * 16) * (3 * 3 * 3) * 8
  second = 2 * (2 * 8 * 8) * (3 * 3 * 8) * 16
  # The second one's output is not needed, nor the gradient of the images.
  assert found.flops == {'float32': 2 * first + 2 * second}
  assert found.once == 2 * first + 2 * second


def test_arithmetic_of_branches_and_loops():
  n = 8

  def step(state, x):
    number, w = state
    w = w + jax.lax.cond(
      number % 4 == 0, lambda: x @ x @ x, lambda: jnp.zeros_like(x)
    )
    w = w + jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: jnp.zeros_like(x))

    def turn(carry, _):
      later = (number >= 2520) & (number != 2520)
      carry = jax.lax.cond(later, lambda c: c @ c, lambda c: c, carry)
      return (carry @ x.astype('bfloat16')).astype('bfloat16'), ()

    w, _ = jax.lax.scan(turn, w.astype('bfloat16'), length=5)
    return number + 1, w.astype('float32')

  found = count(step, (jnp.int32(0), jnp.ones((n, n))), jnp.ones((n, n)))
  one = 2 * n**3
  half = 2519 / plan_costs.STEPS
  assert found.branches == [[0.75, 0.25], None, [1 - half, half]]
  assert found.flops['float32'] == one * (0.25 * 2 + 1)
  np.testing.assert_allclose(found.flops['bfloat16'], one * 5 * (1 + half))
  assert found.once == one * (2 + 1 + 2)


HLO = """
HloModule jit_step, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%every_time (p: f32[8]) -> f32[8] {
  ROOT %r = f32[16,4]{1,0:T(8,128)} all-reduce(%p), channel_id=1, \
replica_groups={{0,1},{2,3}}, to_apply=%add
}

%seldom (p: f32[8]) -> f32[8] {
  %g-start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%p), \
replica_groups=[1,4]<=[4], dimensions={0}
  ROOT %g-done = f32[8,4]{1,0} all-gather-done(%g-start)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = bf16[3]{0} reduce-scatter(%q), replica_groups=mesh['a'=4,'b'=1] {'a'}, \
dimensions={0}, to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %fused = f32[16,4]{1,0} fusion(%x), kind=kLoop, calls=%every_time
  %c = (f32[8,4]{1,0}) conditional(%i, %x, %x), branch_computations=\
{%add, %seldom}, metadata={op_name="jit(step)/branches_1/cond"}
  %w = (s32[], f32[8]{0}) while(%t), condition=%add, body=%body, \
backend_config={"known_trip_count":{"n":"10"}}
  %d = (f32[5]{0}, /*index=1*/pred[7]{0}) all-reduce-start(%x, %x), \
to_apply=%add
  %u = (f32[8,4]{1,0}) conditional(%i, %x, %x), true_computation=%seldom, \
false_computation=%add
}
"""


def test_exchange_in_hlo_by_hand():
  found = plan_hlo.exchanges(HLO, [None, [0.75, 0.25]])
  assert found.kinds == {
    'all-reduce': 16 * 4 * 4 + 5 * 4 + 7,
    'all-gather': 8 * 4 * 4 * (0.25 + 1),
    'reduce-scatter': 10 * 3 * 2 * 4,
  }
  assert found.sent_bytes == 2 * 283 + 160 + 240
  assert found.collectives == 1 + 0.25 + 10 + 1 + 1
  assert found.unknown == 1


def test_exchange_of_a_real_program():
  mesh = parallel.make_mesh(8, 1)
  place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))

  def step(state, x):
    number, w = state
    loss = lambda w, power: jnp.sum((x @ w) ** power)
    grad = jax.grad(loss)(w, 2)
    grad = jax.lax.cond(
      number % 10 == 0,
      lambda: grad + jax.grad(lambda w: loss(w, 3))(jnp.sin(w)),
      lambda: grad,
    )
    return number + 1, w - grad

  state = place((jnp.int32(0), jnp.ones((64, 128))), PartitionSpec())
  x = place(jnp.ones((16, 64)), PartitionSpec('data'))
  traced = jax.jit(step).trace(state, x)
  counted = plan_costs.count(traced.jaxpr, 0)
  program = jax.jit(jax.extend.core.jaxpr_as_fun(counted.jaxpr)).lower(
    *jax.tree.leaves((state, x))
  )
  found = plan_hlo.exchanges(program.compile().as_text(), counted.branches)
  assert counted.branches == [[0.9, 0.1]]
  np.testing.assert_allclose(found.kinds['all-reduce'], 1.1 * 64 * 128 * 4)
  assert set(found.kinds) == {'all-reduce'} and found.unknown == 0


def test_roofline_by_hand():
  chip = plan_chips.Chip(
    'toy', bf16=100.0, f32=50.0, memory=8.0, memory_rate=10.0, link_rate=5.0,
    domain=4, network_rate=1.0, compute_share=0.5,
  )  # fmt: skip
  work = plan_chips.Work(
    bf16=200.0, f32=50.0, state_bytes=8.0, batch_bytes=32.0, sent_bytes=16.0,
    collectives=0.0,
  )  # fmt: skip
  one = plan_chips.seconds(chip, work, 1)
  assert one == (6.0, 5.0, 0.0) and one.step == 6.0
  four = plan_chips.seconds(chip, work.with_batch(0.25), 4)
  np.testing.assert_allclose(four, (1.5, 2.0, 16 * 0.75 / (5 * 0.8)))
  np.testing.assert_allclose(four.step, 5.0)
  eight = plan_chips.seconds(chip, work, 8)
  np.testing.assert_allclose(eight.communication, 16 * 0.875 / 0.8)


def test_a_stage_is_what_training_makes():
  config = tiny('unet')
  found = measured(config, 'unet', compiled=True)
  method = workdir.make_method(config, 'unet', 3)
  state = jax.jit(method.init)(jax.random.key(0), None)
  sizes = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
  assert found.checkpoint == sizes(state)
  for part in ('params', 'opt_state', 'ema', 'extra'):
    assert found.state[part] == sizes(getattr(state, part))
  assert 4 * sum(found.parameters.values()) == found.state['params']
  # The gradients once, and some scalars.
  more = found.kinds['all-reduce'] / found.state['params']
  assert 1 <= more < 1.05 and found.collectives < 60
  assert found.peak > found.checkpoint and found.traffic > found.peak
  # XLA leaves terms on padding out, and counts what is no product.
  np.testing.assert_allclose(found.once, found.xla_flops, rtol=0.2)
  assert found.flops == {'float32': found.once}


def test_lazy_regularisers_count_by_their_share():
  found = measured(tiny('gan'), 'gan')
  assert found.branches == [[15 / 16, 1 / 16]] * 2 + [[3 / 4, 1 / 4]]
  total = sum(found.flops.values())
  assert 0.4 * found.once < total < 0.9 * found.once
  assert found.peak is None and found.kinds is None


def test_batches_are_those_of_the_pipeline():
  config = jaxseg_config.default().unlock()
  config.data.update({'source': 'digits', 'resolution': 32, 'channels': 1})
  config.data.strong.views = 2
  config.data.weak.kind = 'tags'
  stage = jaxseg_config.stage(
    'supervised', batch_size=4, unlabelled_batch_size=2
  )
  config = jaxseg_config.add_stages(config.lock(), unet=stage)
  source = sources.load(config.data)
  sets = splits.make_splits(source, config.data, 0)
  batches = pipeline.train_batches(
    source, sets, config, batch_size=4, unlabelled_batch_size=2, seed=0
  )
  batch = next(batches)
  batches.close()
  shapes = plan_compile.batch_shapes(config, 'unet', len(source.class_names))
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    k: (v.shape, v.dtype) for k, v in shapes.items()
  }


def test_report(monkeypatch):
  monkeypatch.setattr(plan.importlib.util, 'find_spec', lambda name: None)
  config = tiny('unet')
  config.unet.batch_size = 5
  told = plan.report(config, 'tpu-v5e:4', 3)
  found = plan_compile.measure(
    tiny('unet', data=4), 'unet', 3, parallel.make_mesh(4, 1),
    platform='tpu', compiled=False,
  )  # fmt: skip
  for sentence in (
    'Plan for 4 x TPU v5e (v5e:2x2), config.mesh data 4 x model 1',
    'config.unet.batch_size is 5, which 4 devices cannot share evenly',
    'planned with 8.',
    "Compiled for 4 CPU devices, as the TPU's compiler is missing",
    f'together {sum(found.parameters.values()):,}',
    f'{plan_text.flop(sum(found.flops.values()))} a step on average',
    f'disk for 3 (keep_checkpoints + 1): '
    f'{plan_text.size(3 * found.checkpoint)}',
    'at most, of 16 GiB',
    'images/s',
    '197 TFLOP/s with bfloat16',
  ):
    assert sentence in told, sentence
  assert re.search(r'exchanged +all-reduce \d.* KiB a step in \d+ coll', told)
  rows = re.findall(r'^ +(\d+) \|.*100%|^ +(\d+) \|', told, re.MULTILINE)
  assert [a or b for a, b in rows] == ['1', '2', '4']


@pytest.mark.parametrize(
  ('mesh', 'sentence'),
  [
    ({'data': 8}, 'asks for data 8 x model 1 devices, but --devices names 4'),
    ({'model': 8}, 'asks for data -1 x model 8 devices, but'),
  ],
)
def test_a_mesh_that_is_too_large(mesh, sentence):
  with pytest.raises(UserError, match=sentence):
    plan.report(tiny('unet', **mesh), 'gpu-h100:4', 3)


def test_classes_must_be_known():
  with pytest.raises(UserError, match='nowhere.* --classes=K'):
    plan.report(tiny('unet'), 'cpu:1')


FULL = (  # as compilers of two versions say it
  'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for '
  'HLO temporaries (32.53G) exceeds available HBM (15.75G).',
  'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in '
  'memory space hbm. Used 20.16G of 15.75G hbm. Exceeded hbm capacity by '
  '4.41G. Total hbm usage >= 20.42G:',
)


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'too_much': FULL[0]}, 'not fit: 32.5 GiB on each device, 16.8 GiB too'),
    ({'too_much': FULL[1]}, 'not fit: 20.2 GiB on each device, 4.41 GiB too'),
    ({'too_much': 'RESOURCE_EXHAUSTED: no'}, 'says "RESOURCE_EXHAUSTED: no"'),
    ({'peak': 18 * 2**30}, 'not fit: 18 GiB on each device, 2 GiB too much'),
  ],
)
def test_what_does_not_fit(changes, sentence):
  config, named = tiny('unet'), plan_chips.parse('tpu-v5e:8')
  found = plan_compile.Measured(
    parameters={'seg': 1000}, state={'params': 6 * 2**30}, checkpoint=6 * 2**30,
    batch=1000, flops={'float32': 1e12}, moved=1e9, once=1e12,
    branches=[], traffic=1e9, kinds={}, **changes,
  )  # fmt: skip
  told = plan_text.stage(config, 'unet', named, found)
  assert re.search(f'Warning: config.unet does .*{sentence}', told)
  assert 'Set config.unet.args.net.dtype=bfloat16, ' in told
  assert 'or config.mesh.model=2.' in told
  fits = plan_text.stage(
    config, 'unet', named, found._replace(too_much='', peak=2**30)
  )
  assert 'does not fit' not in fits


def test_a_failed_compilation_is_told(monkeypatch):
  monkeypatch.setattr(plan.sys, 'executable', '/bin/false')
  with pytest.raises(UserError, match='config.unet cannot be compiled for 2 x'):
    plan.report(tiny('unet'), 'cpu:2', 3)


def test_large_parameters_are_shared_out():
  config = tiny('unet', data=4, model=2)
  config.unet.args.net.width = 64
  whole = measured(config, 'unet')
  config.mesh.update({'data': 8, 'model': 1})
  alone = measured(config, 'unet')
  assert whole.checkpoint == alone.checkpoint
  assert whole.state['params'] < 0.75 * alone.state['params']
  assert whole.state['opt_state'] < 0.75 * alone.state['opt_state']


@pytest.mark.skipif(
  not importlib.util.find_spec('libtpu'), reason='libtpu is not installed'
)
def test_a_tpu_program():
  config = tiny('unet')
  named = plan_chips.parse('tpu-v5e:4')
  found = plan.measure(config, 'unet', 3, named)
  more = found.kinds['all-reduce'] / found.state['params']
  assert 1 <= more < 1.1
  assert found.checkpoint < found.peak < 16 * 2**30
  assert not found.too_much and found.unknown == 0

"""Chips by their vendors' numbers, and how long a step should take on them."""

import math
import re
from typing import NamedTuple

from jaxseg.errors import UserError


class Chip(NamedTuple):
  """One accelerator; rates are the vendor's peaks, a second.

  Attributes:
    name: as users know it.
    bf16: FLOP of matrix products with bfloat16 operands.
    f32: the same with float32 operands at JAX's default precision, which is
      bfloat16 passes on a TPU and TF32 on a GPU.
    memory: bytes.
    memory_rate: bytes to and from that memory.
    link_rate: bytes each way to the other chips of its domain.
    domain: chips that share such links; 0: all.
    network_rate: bytes each way between domains, for each chip.
    axes: of the torus of a TPU slice; 0: no TPU.
    compute_share: of the FLOP rate, that convolutional networks reach here.
    memory_share: of the memory, that JAX takes for its programs by default.
  """

  name: str
  bf16: float
  f32: float
  memory: float
  memory_rate: float
  link_rate: float
  domain: int = 0
  network_rate: float = 0.0
  axes: int = 0
  compute_share: float = 0.4
  memory_share: float = 1.0

  @property
  def available(self) -> float:
    """Bytes that programs may use."""
    return self.memory * self.memory_share


# XLA_PYTHON_CLIENT_MEM_FRACTION changes it.
GPU_SHARE = 0.75
TERA, GIGA, GIB = 1e12, 1e9, 2**30

# Cloud TPU's pages of each version give "bidirectional" interconnect rates,
# half of which goes each way (v4: 2400 Gbit/s a direction, counted likewise).
# NVIDIA's data sheets: dense rates of the SXM modules; NVLink, both ways
# together, is halved; between servers one 400 Gbit/s adapter for each GPU
# (A100: 200).
CHIPS = {
  'tpu-v4': Chip(
    'TPU v4', 275 * TERA, 275 * TERA, 32 * GIB, 1228 * GIGA, 300 * GIGA, axes=3
  ),
  'tpu-v5e': Chip(
    'TPU v5e', 197 * TERA, 197 * TERA, 16 * GIB, 819 * GIGA, 200 * GIGA, axes=2
  ),
  'tpu-v5p': Chip(
    'TPU v5p', 459 * TERA, 459 * TERA, 95 * GIB, 2765 * GIGA, 600 * GIGA, axes=3
  ),
  'tpu-v6e': Chip(
    'TPU v6e', 918 * TERA, 918 * TERA, 32 * GIB, 1638 * GIGA, 400 * GIGA, axes=2
  ),
  'gpu-a100': Chip(
    'A100 SXM 80 GB', 312 * TERA, 156 * TERA, 80 * GIGA, 2039 * GIGA,
    300 * GIGA, 8, 25 * GIGA, memory_share=GPU_SHARE,
  ),
  'gpu-h100': Chip(
    'H100 SXM', 989 * TERA, 494 * TERA, 80 * GIGA, 3350 * GIGA, 450 * GIGA, 8,
    50 * GIGA, memory_share=GPU_SHARE,
  ),
  'gpu-h200': Chip(
    'H200 SXM', 989 * TERA, 494 * TERA, 141 * GIGA, 4800 * GIGA, 450 * GIGA, 8,
    50 * GIGA, memory_share=GPU_SHARE,
  ),
  # One core of a recent server. The rates are what was measured in
  # convolutions, so all of it is expected; XLA computes bfloat16 in float32.
  'cpu': Chip(
    'CPU core', 90 * GIGA, 90 * GIGA, 4 * GIB, 10 * GIGA, 5 * GIGA,
    compute_share=1.0,
  ),
}  # fmt: skip

# What is reached of the memories' and the links' peaks, and the time that a
# collective takes however few its bytes.
MEMORY_SHARE = 0.8
LINK_SHARE = 0.8
COLLECTIVE_SECONDS = 1e-5

SLICES = {  # the slices that can be had, by their number of chips
  2: ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
  3: (
    '1x1x1', '2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8',
    '8x8x8', '8x8x16', '8x16x16', '16x16x16',
  ),
}  # fmt: skip


class Devices(NamedTuple):
  """What `--devices` names: a kind, how many, and a TPU slice's topology."""

  kind: str
  count: int
  topology: str = ''

  @property
  def chip(self) -> Chip:
    return CHIPS[self.kind]


def parse(text: str) -> Devices:
  """Reads 'tpu-v5e:64', 'gpu-h100:8' or 'cpu:8'; without a number: one.

  Raises:
    UserError: an unknown chip, no number, or a slice that does not exist.
  """
  kind, colon, number = text.strip().lower().partition(':')
  if kind not in CHIPS:
    raise UserError(
      f'--devices={text} names no known chip, expected one of '
      f'{", ".join(CHIPS)} with a number, such as tpu-v5e:64.'
    )
  if colon and not re.fullmatch('[1-9][0-9]{0,5}', number):
    raise UserError(
      f'--devices={text} has no number of chips behind the colon, expected '
      f'1 or more, such as {kind}:8.'
    )
  count, axes = int(number or 1), CHIPS[kind].axes
  if not axes:
    return Devices(kind, count)
  slices = {math.prod(map(int, s.split('x'))): s for s in SLICES[axes]}
  if count not in slices:
    raise UserError(
      f'--devices={text} asks for {count} chips, but {CHIPS[kind].name} slices '
      f'have {", ".join(map(str, slices))}; choose one of them (chips, not '
      'TensorCores).'
    )
  return Devices(kind, count, f'{kind.removeprefix("tpu-")}:{slices[count]}')


class Work(NamedTuple):
  """What one device does in one step, on average over many.

  Attributes:
    bf16: FLOP of convolutions and matrix products with bfloat16 operands.
    f32: the same with float32 operands.
    state_bytes: memory traffic that does not depend on the batch.
    batch_bytes: the rest of the memory traffic.
    sent_bytes: what goes out of a device in a ring of endlessly many.
    collectives: how many.
  """

  bf16: float
  f32: float
  state_bytes: float
  batch_bytes: float
  sent_bytes: float
  collectives: float

  def with_batch(self, factor: float) -> 'Work':
    """The work with `factor` times the images on each device."""
    return self._replace(
      bf16=self.bf16 * factor,
      f32=self.f32 * factor,
      batch_bytes=self.batch_bytes * factor,
    )


class Seconds(NamedTuple):
  """The parts of a step's time; communication is not hidden behind the rest."""

  compute: float
  memory: float
  communication: float

  @property
  def step(self) -> float:
    return max(self.compute, self.memory) + self.communication


def seconds(chip: Chip, work: Work, devices: int) -> Seconds:
  """The roofline: arithmetic or memory, whichever is slower, then the links.

  Args:
    chip: the kind of device.
    work: of one device.
    devices: how many take part; one does not communicate.
  """
  compute = work.bf16 / chip.bf16 + work.f32 / chip.f32
  memory = (work.state_bytes + work.batch_bytes) / chip.memory_rate
  communication = 0.0
  if devices > 1:
    inside = not chip.domain or devices <= chip.domain
    rate = chip.link_rate if inside else chip.network_rate
    communication = (
      work.sent_bytes * (devices - 1) / devices / (rate * LINK_SHARE)
      + work.collectives * COLLECTIVE_SECONDS
    )
  return Seconds(
    compute / chip.compute_share, memory / MEMORY_SHARE, communication
  )

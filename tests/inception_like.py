"""Inception-v3 with the published key names, of any width, in PyTorch.

Written from the paper's figures; as `nets.inception` but with layers that are
named one by one.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Basic(nn.Module):
  """Convolution, batch norm, ReLU."""

  def __init__(self, inputs, out, size, stride=1, padding=0):
    super().__init__()
    self.conv = nn.Conv2d(inputs, out, size, stride, padding, bias=False)
    self.bn = nn.BatchNorm2d(out, eps=1e-3)

  def forward(self, x):
    return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
  """A block; `parts`: name -> (inputs, outputs, size, stride, padding)."""

  def __init__(self, kind, is_fid, parts):
    super().__init__()
    self.kind, self.is_fid = kind, is_fid
    for name, args in parts.items():
      self.add_module(name, Basic(*args))

  def chain(self, x, *names):
    for name in names:
      x = getattr(self, name)(x)
    return x

  def pooled(self, x):
    if self.kind == 'E_max':
      return self.branch_pool(F.max_pool2d(x, 3, 1, 1))
    counts = not self.is_fid
    x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=counts)
    return self.branch_pool(x)

  def forward(self, x):
    name = self.kind[0]
    return torch.cat(getattr(self, f'forward_{name}')(x), 1)

  def forward_A(self, x):
    three = self.chain(x, *(f'branch3x3dbl_{i}' for i in (1, 2, 3)))
    five = self.chain(x, 'branch5x5_1', 'branch5x5_2')
    return self.branch1x1(x), five, three, self.pooled(x)

  def forward_B(self, x):
    three = self.chain(x, *(f'branch3x3dbl_{i}' for i in (1, 2, 3)))
    return self.branch3x3(x), three, F.max_pool2d(x, 3, 2)

  def forward_C(self, x):
    seven = self.chain(x, *(f'branch7x7_{i}' for i in (1, 2, 3)))
    twice = self.chain(x, *(f'branch7x7dbl_{i}' for i in (1, 2, 3, 4, 5)))
    return self.branch1x1(x), seven, twice, self.pooled(x)

  def forward_D(self, x):
    three = self.chain(x, 'branch3x3_1', 'branch3x3_2')
    seven = self.chain(x, *(f'branch7x7x3_{i}' for i in (1, 2, 3, 4)))
    return three, seven, F.max_pool2d(x, 3, 2)

  def forward_E(self, x):
    three = self.branch3x3_1(x)
    twice = self.chain(x, 'branch3x3dbl_1', 'branch3x3dbl_2')
    return (
      self.branch1x1(x),
      self.branch3x3_2a(three),
      self.branch3x3_2b(three),
      self.branch3x3dbl_3a(twice),
      self.branch3x3dbl_3b(twice),
      self.pooled(x),
    )


def _a(n, inputs, pooled):
  return {
    'branch1x1': (inputs, n(64), 1),
    'branch5x5_1': (inputs, n(48), 1),
    'branch5x5_2': (n(48), n(64), 5, 1, 2),
    'branch3x3dbl_1': (inputs, n(64), 1),
    'branch3x3dbl_2': (n(64), n(96), 3, 1, 1),
    'branch3x3dbl_3': (n(96), n(96), 3, 1, 1),
    'branch_pool': (inputs, n(pooled), 1),
  }


def _b(n, inputs):
  return {
    'branch3x3': (inputs, n(384), 3, 2),
    'branch3x3dbl_1': (inputs, n(64), 1),
    'branch3x3dbl_2': (n(64), n(96), 3, 1, 1),
    'branch3x3dbl_3': (n(96), n(96), 3, 2),
  }


def _c(n, inputs, c):
  c, row, column = n(c), ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
  return {
    'branch1x1': (inputs, n(192), 1),
    'branch7x7_1': (inputs, c, 1),
    'branch7x7_2': (c, c, *row),
    'branch7x7_3': (c, n(192), *column),
    'branch7x7dbl_1': (inputs, c, 1),
    'branch7x7dbl_2': (c, c, *column),
    'branch7x7dbl_3': (c, c, *row),
    'branch7x7dbl_4': (c, c, *column),
    'branch7x7dbl_5': (c, n(192), *row),
    'branch_pool': (inputs, n(192), 1),
  }


def _d(n, inputs):
  return {
    'branch3x3_1': (inputs, n(192), 1),
    'branch3x3_2': (n(192), n(320), 3, 2),
    'branch7x7x3_1': (inputs, n(192), 1),
    'branch7x7x3_2': (n(192), n(192), (1, 7), 1, (0, 3)),
    'branch7x7x3_3': (n(192), n(192), (7, 1), 1, (3, 0)),
    'branch7x7x3_4': (n(192), n(192), 3, 2),
  }


def _e(n, inputs):
  row, column = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
  return {
    'branch1x1': (inputs, n(320), 1),
    'branch3x3_1': (inputs, n(384), 1),
    'branch3x3_2a': (n(384), n(384), *row),
    'branch3x3_2b': (n(384), n(384), *column),
    'branch3x3dbl_1': (inputs, n(448), 1),
    'branch3x3dbl_2': (n(448), n(384), 3, 1, 1),
    'branch3x3dbl_3a': (n(384), n(384), *row),
    'branch3x3dbl_3b': (n(384), n(384), *column),
    'branch_pool': (inputs, n(192), 1),
  }


class Inception(nn.Module):
  """width: of the first convolution, 32 as published."""

  def __init__(self, width: int, num_classes: int, is_fid: bool):
    super().__init__()
    n = lambda features: features * width // 32
    self.Conv2d_1a_3x3 = Basic(3, n(32), 3, 2)
    self.Conv2d_2a_3x3 = Basic(n(32), n(32), 3)
    self.Conv2d_2b_3x3 = Basic(n(32), n(64), 3, 1, 1)
    self.Conv2d_3b_1x1 = Basic(n(64), n(80), 1)
    self.Conv2d_4a_3x3 = Basic(n(80), n(192), 3)
    last = 'E_max' if is_fid else 'E'
    for name, kind, parts in (
      ('5b', 'A', _a(n, n(192), 32)),
      ('5c', 'A', _a(n, n(256), 64)),
      ('5d', 'A', _a(n, n(288), 64)),
      ('6a', 'B', _b(n, n(288))),
      ('6b', 'C', _c(n, n(768), 128)),
      ('6c', 'C', _c(n, n(768), 160)),
      ('6d', 'C', _c(n, n(768), 160)),
      ('6e', 'C', _c(n, n(768), 192)),
      ('7a', 'D', _d(n, n(768))),
      ('7b', 'E', _e(n, n(1280))),
      ('7c', last, _e(n, n(2048))),
    ):
      self.add_module(f'Mixed_{name}', Mixed(kind, is_fid, parts))
    self.fc = nn.Linear(n(2048), num_classes)

  def forward(self, x):
    for name in ('1a_3x3', '2a_3x3', '2b_3x3'):
      x = getattr(self, f'Conv2d_{name}')(x)
    x = F.max_pool2d(x, 3, 2)
    x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
    x = F.max_pool2d(x, 3, 2)
    for name in ('5b', '5c', '5d', '6a', '6b', '6c', '6d', '6e', '7a', '7b'):
      x = getattr(self, f'Mixed_{name}')(x)
    pool = self.Mixed_7c(x).mean((2, 3))
    return pool, self.fc(pool)

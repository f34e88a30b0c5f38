"""Pickles of StyleGAN2-ADA's PyTorch version: arrays and settings, no code."""

import io
import pickle
import sys
import types
from collections import OrderedDict

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxseg.published import read
from jaxseg.published.source import WeightsError

# A legacy file of torch.save that holds one float32 storage.
HEAD = (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})


class Call:
  """Pickled as a call of a function."""

  def __init__(self, function, *arguments):
    self.function, self.arguments = function, arguments

  def __reduce__(self):
    return self.function, self.arguments


@pytest.fixture
def fake(monkeypatch):
  """Adds something with a published name, and nothing behind it."""

  def fake(module, name, what=None):
    if what is None:
      what = lambda *arguments: arguments
    what.__module__, what.__qualname__ = module, name
    parts = module.split('.')
    for i in range(len(parts)):
      part = '.'.join(parts[: i + 1])
      if not isinstance(sys.modules.get(part), Fake):
        monkeypatch.setitem(sys.modules, part, Fake(part))
    setattr(sys.modules[module], name, what)
    return what

  return fake


class Fake(types.ModuleType):
  pass


@pytest.fixture
def persistent(fake):
  return fake('torch_utils.persistence', '_reconstruct_persistent_obj')


@pytest.fixture
def write(fake, persistent, tmp_path):
  """Functions that make the parts of such a file without PyTorch."""
  easy = fake('dnnlib.util', 'EasyDict', type('EasyDict', (dict,), {}))
  float_storage = fake('torch', 'FloatStorage', type('FloatStorage', (), {}))
  rebuild = fake('torch._utils', '_rebuild_tensor_v2')
  rebuild_parameter = fake('torch._utils', '_rebuild_parameter')
  load = fake('torch.storage', '_load_from_bytes')

  def storage(array):
    class Pickler(pickle.Pickler):
      def persistent_id(self, value):
        if value is array:
          return 'storage', float_storage, '7', 'cpu', array.size, None

    out = io.BytesIO()
    for part in HEAD:
      pickle.dump(part, out, 2)
    Pickler(out, 2).dump(array)
    pickle.dump(['7'], out, 2)
    out.write(np.int64(array.size).tobytes() + array.tobytes())
    return Call(load, out.getvalue())

  def tensor(array, parameter=True):
    array = np.asarray(array, '<f4')
    strides = tuple(s // 4 for s in array.strides)
    hooks = OrderedDict()
    made = Call(
      rebuild,
      *(storage(array.ravel()), 0, array.shape, strides, False, hooks),
    )
    if not parameter:
      return made
    return Call(rebuild_parameter, made, True, hooks)

  def module(name, parameters=(), buffers=(), inner=(), **state):
    make = lambda pairs: OrderedDict(pairs)
    state |= {
      'training': False,
      '_parameters': make((k, v) for k, v in dict(parameters).items()),
      '_buffers': make(buffers),
      '_modules': make(inner),
      '_non_persistent_buffers_set': set(),
      '_init_args': (),
    }
    meta = dict(
      type='class', version=6, class_name=name, state=state,
      module_src=f'open({str(tmp_path / "canary")!r}, "w")',
    )  # fmt: skip
    return Call(persistent, meta)

  return types.SimpleNamespace(tensor=tensor, module=module, easy=easy)


def file_of(write, const, bias):
  layer = write.module(
    'SynthesisLayer',
    {'bias': write.tensor(bias), 'none': None},
    {'filter': write.tensor(np.eye(3), parameter=False)},
    act_gain=np.sqrt(2),
    resolutions=[4, 8],
  )
  block = write.module(
    'SynthesisBlock', {'const': write.tensor(const)}, inner={'conv1': layer}
  )
  synthesis = write.module('SynthesisNetwork', inner={'b4': block})
  kwargs = write.easy(w_dim=8, synthesis_kwargs=write.easy(channel_base=64))
  generator = write.module(
    'Generator', inner={'synthesis': synthesis}, z_dim=8, _init_kwargs=kwargs
  )
  return {
    'G': generator,
    'D': write.module('Discriminator', {'out': write.tensor(bias)}),
    'G_ema': generator,
    'training_set_kwargs': write.easy(class_name='a.B', path='x', size=None),
    'augment_pipe': None,
  }


@pytest.mark.parametrize('protocol', (2, 3, 4, 5))
def test_networks_are_data(write, tmp_path, protocol):
  rng = np.random.default_rng(0)
  const, bias = rng.normal(size=(2, 4, 4)), np.arange(70_000)
  content = pickle.dumps(file_of(write, const, bias), protocol)
  (tmp_path / 'x.bin').write_bytes(content)
  source = read.open_source(str(tmp_path / 'x.bin'))
  layer = 'synthesis.b4.conv1.'
  assert set(source.keys()) == {'D/out'} | {
    f'{g}/{name}'
    for g in ('G', 'G_ema')
    for name in (f'{layer}bias', f'{layer}filter', 'synthesis.b4.const')
  }
  get = lambda key: source.tensors[key].read()
  assert_array_equal(get('G_ema/synthesis.b4.const'), const.astype('f4'))
  assert_array_equal(get(f'G/{layer}bias'), bias.astype('f4'))
  assert_array_equal(get(f'G_ema/{layer}filter'), np.eye(3, dtype='f4'))
  for key, value in {
    'G_ema/_class_name': 'Generator',
    'G_ema/_init_kwargs/w_dim': 8,
    'G_ema/_init_kwargs/synthesis_kwargs/channel_base': 64,
    'G_ema/_init_args': (),
    'G_ema/z_dim': 8,
    f'G_ema/{layer}_class_name': 'SynthesisLayer',
    f'G_ema/{layer}resolutions': [4, 8],
    f'G_ema/{layer}act_gain': np.sqrt(2),
    'D/_class_name': 'Discriminator',
    'training_set_kwargs/class_name': 'a.B',
    'augment_pipe': None,
  }.items():
    assert source.values[key] == value, key
  assert not (tmp_path / 'canary').exists()
  text = repr(source.values)
  assert 'canary' not in text and 'Global' not in text


def refused(path, *words):
  with pytest.raises(WeightsError) as error:
    read.open_source(str(path))
  message = str(error.value)
  assert '\n' not in message
  for word in words:
    assert word in message


def test_old_and_damaged_files(write, fake, persistent, tmp_path):
  path = tmp_path / 'x.pkl'
  network = fake('dnnlib.tflib.network', 'Network', type('Network', (), {}))
  path.write_bytes(pickle.dumps((network(),)))
  refused(path, 'TensorFlow', 'legacy.py')
  path.write_bytes(b'\x1f\x8b\x08' + bytes(20))
  refused(path, 'gunzip')
  content = pickle.dumps(file_of(write, np.ones((1, 4, 4)), np.ones(9)), 4)
  for size in range(0, len(content), 97):
    path.write_bytes(content[:size])
    refused(path)
  path.write_bytes(content + b'\0')
  refused(path, 'follows')
  for meta in (1, {'type': 'class'}, {'type': 'function', 'state': {}}):
    path.write_bytes(pickle.dumps({'G': Call(persistent, meta)}))
    refused(path, 'a network in it')


def test_a_network_within_itself(persistent, tmp_path):
  state = {'_modules': {}}
  inner = Call(persistent, {'type': 'class', 'state': state})
  for i in range(40):  # each twice in the next
    modules = {str(i): inner, 'again': inner}
    state = {'_modules': modules}
    inner = Call(persistent, {'type': 'class', 'state': state})
  (tmp_path / 'x.pkl').write_bytes(pickle.dumps({'G': inner}))
  refused(tmp_path / 'x.pkl', 'too many modules')


def test_written_by_torch(persistent, tmp_path):
  """The same with PyTorch's own modules and pickled tensors."""
  torch = pytest.importorskip('torch', reason='PyTorch writes the files')

  class Layer(torch.nn.Linear):
    def __reduce__(self):
      state = super().__reduce__()[2]
      meta = {'type': 'class', 'class_name': 'Layer', 'state': state}
      return persistent, (meta,)

  net = Layer(3, 2)
  net.inner = Layer(300, 400)
  net.register_buffer('sixteen', torch.arange(4).half())
  (tmp_path / 'x.pkl').write_bytes(pickle.dumps({'G_ema': net}))
  source = read.open_source(str(tmp_path / 'x.pkl'))
  assert set(source.keys()) == {f'G_ema/{key}' for key in net.state_dict()}
  for key, value in net.state_dict().items():
    found = source.tensors[f'G_ema/{key}'].read()
    assert found.dtype.name == str(value.dtype).removeprefix('torch.')
    assert_array_equal(found, value.numpy())
  assert source.values['G_ema/inner.in_features'] == 300

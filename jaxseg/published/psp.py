"""The published encoders of pSp and e4e, on an IR-SE50 body.

Richardson et al., Encoding in Style (pSp, CVPR 2021), section 3; Tov et al.,
Designing an Encoder for StyleGAN Image Manipulation (e4e, SIGGRAPH 2021),
section 4.
"""

from jaxseg.published.encoders import conv_norm, heads
from jaxseg.published.networks import Network
from jaxseg.published.source import Source, WeightsError, batch_norm, conv
from jaxseg.published.stylegan2 import refuse_left

# Units of each stage of the only body that pSp and e4e were published with.
IR_50 = (3, 4, 14, 3)


def encoder(source: Source, arch: str) -> Network:
  """Converts the encoder of pSp or of e4e, whose keys are the same.

  Args:
    source: the part of a file that holds it: keys 'input_layer.0.weight', ...
    arch: 'psp_encoder' or 'e4e_encoder'.

  Returns:
    that arch with 'params' and 'batch_stats'.

  Raises:
    WeightsError: arrays are missing, have another shape or are too many; also
      an encoder of the same authors without heads or without a pyramid.
  """
  _refuse_other_encoders(source)
  units, widths = _stages(source)
  body, stats, stem, se_widths = _body(source, units, widths)
  params = {'body': body}
  for theirs, ours, level in (
    ('latlayer1', 'lateral3', 2), ('latlayer2', 'lateral2', 1)
  ):  # fmt: skip
    params[ours] = conv(source, theirs, widths[-1], widths[level], 1)
  count = source.count(r'styles\.(\d+)\.linear\.weight')
  places = [f'styles.{i}' for i in range(count)]
  found, settings = heads(source, places, widths[-1])
  refuse_left(source, 'this encoder')
  settings |= {
    'input_size': source.side(2 + settings['head_depths'][0]),
    'num_styles': count, 'units': units, 'widths': widths, 'stem_width': stem,
    'se_widths': se_widths,
    'channels': source.shape('input_layer.0.weight', 4)[1],
  }  # fmt: skip
  variables = {'params': params | found, 'batch_stats': {'body': stats}}
  return Network(arch, settings, variables)


def _refuse_other_encoders(source):
  """Refuses what the authors published beside pSp's and e4e's encoders."""
  has_body = 'body.0.res_layer.1.weight' in source
  for key, found in (
    ('styles.0.linear.weight', 'an encoder without a head for each style'),
    ('latlayer1.weight', 'an encoder without a feature pyramid'),
  ):
    if has_body and key not in source:
      raise WeightsError(
        f'the weights {source.path} hold {found} (no {source.prefix}{key}), '
        'expected one of pSp (GradualStyleEncoder) or e4e (Encoder4Editing); '
        'convert a checkpoint of one of these, or its generator alone with '
        '--kind=stylegan2'
      )


def _stages(source):
  """([units], [width]) of the body's four stages."""
  count = source.count(r'body\.(\d+)\.res_layer\.1\.weight')
  if not count:
    raise source.missing('body.0.res_layer.1.weight')
  widths = [
    source.shape(f'body.{i}.res_layer.3.weight', 4)[0] for i in range(count)
  ]
  starts = [i for i in range(count) if not i or widths[i] != widths[i - 1]]
  # Neighbouring stages may be equally wide.
  published = [sum(IR_50[:i]) for i in range(len(IR_50))]
  if count == sum(IR_50) and set(starts) <= set(published):
    starts = published
  if len(starts) != len(IR_50):
    raise WeightsError(
      f'the weights {source.path} hold a body of {count} units '
      f'({source.prefix}body) in {len(starts)} stages of different widths, '
      f'expected {sum(IR_50)} units, or four such stages; is the file '
      'of another kind?'
    )
  ends = [*starts[1:], count]
  units = [end - start for start, end in zip(starts, ends, strict=True)]
  return units, [widths[start] for start in starts]


def _body(source, units, widths):
  """(params, stats, stem's width, SE's width of each stage)."""
  fan_in = stem = source.shape('input_layer.0.weight', 4)[0]
  trees = params, stats = {}, {}
  names = ('input_layer.0', 'input_layer.1'), ('stem', 'norm_stem')
  conv_norm(source, trees, *names, (stem, None, 3))
  params['prelu_stem'] = {
    'slope': source.entry('input_layer.2.weight', (stem,))
  }
  se_widths, place = [], 0
  for i, (count, width) in enumerate(zip(units, widths, strict=True)):
    squeeze = f'body.{place}.res_layer.5.fc1.weight'
    se_widths.append(source.shape(squeeze, 4)[0] if squeeze in source else 0)
    for j in range(count):
      ours, part = f'stage{i}_unit{j}', source.under(f'body.{place}.')
      params[ours], stats[ours] = _unit(part, width, fan_in, se_widths[-1])
      fan_in, place = width, place + 1
  return params, stats, stem, se_widths


def _unit(source, width, fan_in, se_width):
  """(params, stats) of a residual unit."""
  layers = source.under('res_layer.')
  trees = params, stats = {}, {}
  params['norm1'], stats['norm1'] = batch_norm(layers, '0', fan_in)
  params['conv1'] = conv(layers, '1', width, fan_in, 3, bias=False)
  params['prelu'] = {'slope': layers.entry('2.weight', (width,))}
  names = ('3', '4'), ('conv2', 'norm2')
  conv_norm(layers, trees, *names, (width, width, 3))
  if se_width:
    params['se'] = {
      'squeeze': conv(layers, '5.fc1', se_width, width, 1, bias=False),
      'excite': conv(layers, '5.fc2', width, se_width, 1, bias=False),
    }
  if fan_in != width:
    names = (
      ('shortcut_layer.0', 'shortcut_layer.1'),
      ('shortcut', 'norm_shortcut'),
    )
    conv_norm(source, trees, *names, (width, fan_in, 1))
  return trees

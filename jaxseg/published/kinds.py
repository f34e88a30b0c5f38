"""The kinds of files that can be converted, and how each is."""

from collections.abc import Callable

from jaxseg.errors import UserError
from jaxseg.published import (
  ada,
  backbones,
  encoders,
  inception,
  perceptual,
  psp,
  stylegan2,
)
from jaxseg.published.networks import Converted
from jaxseg.published.source import Source, WeightsError, shown

# Keys that tell what a file is: (kind, beginnings of keys).
SIGNS = (
  ('psp', ('state_dict/encoder.body.', 'encoder.body.')),
  ('stylegan2-ada', ('G_ema/synthesis.', 'G/synthesis.', 'synthesis.b4.')),
  ('lpips', ('lin0.', 'lins.0.')),
  ('inception', ('Mixed_5b.',)),
  ('semanticgan', ('d_seg/', 'e/', 'g_ema/to_seg1.', 'g/to_seg1.', 'to_seg1.')),
  ('stylegan2', ('g_ema/input.', 'g/input.', 'input.input')),
  ('torchvision', ('features.0.', 'layer1.0.', 'state_dict/layer1.0.')),
)

# Recorded types of the encoders of pSp's authors that are converted, by kind.
ENCODERS = {'GradualStyleEncoder': 'psp', 'Encoder4Editing': 'e4e'}


def convert(
  kind: str, source: Source, features: Source | None = None, size: int = 0
) -> Converted:
  """Converts a file.

  Args:
    kind: a key of KINDS.
    source: the opened file.
    features: of kind 'lpips', the file of the network it compares features of.
    size: side of the generator's images, where it is to be checked; 0: any.

  Returns:
    what it holds; nothing is read yet.

  Raises:
    UserError: an unknown kind.
    WeightsError: the file is of another kind or size, or arrays are missing or
      have another shape.
  """
  if kind not in KINDS:
    raise UserError(
      f'--kind={kind} is unknown, expected one of {", ".join(KINDS)}'
    )
  if kind == 'lpips' and features is not None:
    perceptual.refuse_swapped(source, features)
  if (found := sniff(source, kind)) and not _are_alike(found, kind):
    raise WeightsError(
      f'the weights {source.path} look like kind {found}, not {kind}; give '
      f'--kind={found}'
    )
  if features is not None and kind != 'lpips':
    raise UserError(
      f'--features={features.path} is for --kind=lpips, not for {kind}; leave '
      'it out'
    )
  converted = KINDS[kind](source, features)
  _refuse_misfits(source, converted.networks)
  if size:
    _refuse_other_size(source, converted.networks, size)
  return converted


def sniff(source: Source, wanted: str = '') -> str | None:
  """The kind that the names in a file speak for; None: unknown ones.

  Args:
    source: the opened file.
    wanted: the kind it is taken for, where names do not tell.
  """
  for kind, beginnings in SIGNS:
    if any(key.startswith(beginnings) for key in source.keys()):
      return _psp_or_e4e(source, wanted) if kind == 'psp' else kind
  return None


def _are_alike(found, kind):
  """Whether a file of one kind may be one of another, as far as names tell."""
  if {found, kind} == {'stylegan2', 'semanticgan'}:
    return True  # what is missing is told by name
  # Of the files of any encoder, the generator may be wanted alone.
  return found == kind or (kind == 'stylegan2' and found in ENCODERS.values())


def _psp_or_e4e(source, wanted):
  """Their encoders have the same names; only the recorded options differ."""
  recorded = source.values.get('opts/encoder_type')
  if isinstance(recorded, str) and recorded in ENCODERS:
    return ENCODERS[recorded]
  return 'e4e' if wanted == 'e4e' else 'psp'


def _refuse_misfits(source, networks):
  """Raises if a network of the file cannot work with its generator."""
  name = 'g_ema' if 'g_ema' in networks else 'g'
  if name not in networks:
    return
  wanted = _interface(networks[name])
  for other, network in networks.items():
    for what, found in _interface(network).items():
      if found != wanted[what]:
        raise WeightsError(
          f'the weights {source.path} hold {other} of {what} {found} beside '
          f'{name} of {what} {wanted[what]}, expected the same; is the file '
          'damaged?'
        )


def _interface(network):
  """What networks of one file must agree about, by what it is."""
  settings, params = network.settings, network.variables['params']
  if network.arch == 'stylegan2_generator':
    channels, classes = settings['channels'], settings['num_classes']
    return {
      'size': settings['resolution'],
      'channels': channels,
      'classes': classes,
      'channels and classes': channels + classes,
      'styles': 2 * len(settings['widths']),
      'width of w': settings['w_dim'],
    }
  if network.arch == 'stylegan2_discriminator':
    channels = params['from_rgb']['kernel'].shape[2]
    return {'size': settings['resolution'], 'channels': channels}
  if network.arch == 'multiscale_discriminator':
    both = params['scale_0']['layer0']['kernel'].shape[2]
    return {'channels and classes': both}
  # Encoders: pSp's take images of their own size, perhaps of other channels.
  places = {'resolution': 'size', 'num_styles': 'styles'}
  found = {places[k]: v for k, v in settings.items() if k in places}
  return found | {'width of w': settings['w_dim']}


def _refuse_other_size(source, networks, size):
  sizes = {
    name: network.settings['resolution']
    for name, network in networks.items()
    if 'resolution' in network.settings
  }
  if not sizes:
    raise UserError(
      f'--size={size} is for files with a generator, found '
      f'{", ".join(networks)} in {source.path}; leave it out'
    )
  for name, got in sizes.items():
    if got != size:
      raise WeightsError(
        f'the weights {source.path} hold {name} of size {got}, but --size is '
        f'{size}; leave --size out'
      )


def _stylegan2(source: Source, _) -> Converted:
  networks, extras = _generators(source)
  if 'd/convs.0.0.weight' in source:
    networks['d_r'] = stylegan2.discriminator(source.under('d/'))
  w_avg = _w_avg(source, networks)
  return Converted('stylegan2', networks, extras | w_avg)


def _semanticgan(source: Source, _) -> Converted:
  networks, extras = _generators(source)
  generator = networks.get('g_ema') or networks['g']
  if not generator.settings['num_classes']:
    raise source.missing(
      'to_seg1.bias' if 'input.input' in source else 'g_ema/to_seg1.bias'
    )
  for key, name, part in (
    ('d_img/convs.0.0.weight', 'd_r', stylegan2.discriminator),
    ('d_seg/scale0_layer0.0.weight', 'd_m', stylegan2.multiscale),
  ):
    if key in source:
      networks[name] = part(source.under(key.split('/')[0] + '/'))
  if any(key.startswith('e/') for key in source.keys()):
    networks['e'] = encoders.semanticgan_encoder(source.under('e/'))
  w_avg = _w_avg(source, networks)
  return Converted('semanticgan', networks, extras | w_avg)


def _generators(source):
  """({'g', 'g_ema'} as far as they are there, {'noise': ..})."""
  networks, extras = {}, {}
  # Read later; beside a bare state dict it is none of the generator's.
  source.take('latent_avg')
  for name, prefix in (
    ('g', 'g/'), ('g_ema', 'g_ema/'), ('g_ema', ''),
    ('g_ema', 'state_dict/decoder.'), ('g_ema', 'decoder.'),
  ):  # fmt: skip
    part = source.under(prefix)
    if 'input.input' in part:
      networks[name], noise = stylegan2.generator(part)
      if noise:
        extras['noise'] = noise
  if not networks:
    raise source.missing('g_ema/input.input')
  return networks, extras


def _w_avg(source, networks):
  """{'w_avg': entry [D] or [L, D]}, or {} where the file has none."""
  if 'latent_avg' not in source:
    return {}
  settings = (networks.get('g_ema') or networks['g']).settings
  w_dim = settings['w_dim']
  latents = 2 * len(settings['widths'])
  shape = source.shape('latent_avg')
  allowed = [(w_dim,), (1, w_dim), (latents, w_dim)]
  if shape not in allowed:
    raise WeightsError(
      f'the weights {source.path} hold latent_avg of shape {shape}, expected '
      f'one of {", ".join(map(str, allowed))} beside this generator'
    )
  flat = lambda x: x.reshape(-1) if x.shape[0] == 1 or x.ndim == 1 else x
  return {'w_avg': source.entry('latent_avg', shape, flat)}


def _psp(source: Source, _, kind: str = 'psp') -> Converted:
  _refuse_other_encoders(source)
  top = 'state_dict/' if any(
    key.startswith('state_dict/') for key in source.keys()
  ) else ''  # fmt: skip
  generator, noise = stylegan2.generator(source.under(f'{top}decoder.'))
  encoder = psp.encoder(source.under(f'{top}encoder.'), f'{kind}_encoder')
  networks = {'g_ema': generator, 'e': encoder}
  extras = {'noise': noise} if noise else {}
  extras |= _w_avg(source, networks)
  # So are all that were published; a state dict alone records nothing.
  recorded = source.values.get('opts/start_from_latent_avg')
  adds, remarks = recorded is None or bool(recorded), ()
  if adds and 'w_avg' not in extras:
    remarks = (
      'the file holds no latent_avg, the mean w that codes of its encoder are '
      'relative to: it is estimated from the generator, which gives nearly the '
      'same',
    )
  return Converted(kind, networks, extras, remarks, adds)


def _refuse_other_encoders(source):
  recorded = source.values.get('opts/encoder_type')
  if isinstance(recorded, str) and recorded not in ENCODERS:
    raise WeightsError(
      f'the weights {source.path} hold an encoder of type {shown(recorded)}, '
      f'expected {" or ".join(f"{t} ({k})" for t, k in ENCODERS.items())}; '
      'convert its generator alone with --kind=stylegan2'
    )


def _e4e(source: Source, _) -> Converted:
  return _psp(source, _, 'e4e')


def _ada(source: Source, _) -> Converted:
  networks, extras = {}, {}
  for name, prefix in (('g', 'G/'), ('g_ema', 'G_ema/'), ('g_ema', '')):
    part = source.under(prefix)
    if 'synthesis.b4.const' in part:
      networks[name], noise, w_avg = ada.generator(part)
      extras = {'noise': noise} if noise else {}
      extras |= {'w_avg': w_avg} if w_avg else {}
  if not networks:
    raise source.missing('G_ema/synthesis.b4.const')
  if any(key.startswith('D/') for key in source.keys()):
    networks['d_r'] = ada.discriminator(source.under('D/'))
  return Converted('stylegan2-ada', networks, extras)


KINDS: dict[str, Callable[[Source, Source | None], Converted]] = {
  'stylegan2': _stylegan2,
  'semanticgan': _semanticgan,
  'psp': _psp,
  'e4e': _e4e,
  'stylegan2-ada': _ada,
  'lpips': perceptual.convert,
  'torchvision': lambda source, _: backbones.convert(source),
  'inception': lambda source, _: inception.convert(source),
}

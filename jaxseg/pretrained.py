"""Published PyTorch weights as weights of the networks here, once and safely.

  python -m jaxseg.pretrained convert --kind=psp --source=psp_ffhq.pt \
    --output=weights/psp_ffhq
  python -m jaxseg.pretrained show weights/psp_ffhq
  python -m jaxseg.pretrained export --workdir=runs/digits --output=weights/mine

Kinds: stylegan2, semanticgan, psp, e4e, stylegan2-ada, lpips, torchvision,
inception. Sizes, channels and classes are found in the file. Nothing in it is
executed: of pickles only arrays and plain containers are built. The folder goes
wherever weights are asked for: `jaxseg.predict --pretrained=`,
`config.STAGE.init_from`, `net.weights`, `lpips_weights`; in Python,
`jaxseg.pretrained.load(folder)`.
"""

import signal
import sys
import time
from typing import Any

from absl import app, flags

from jaxseg import errors, writers
from jaxseg.config import parse_flags
from jaxseg.errors import UserError
from jaxseg.nets.stylegan2 import num_latents
from jaxseg.published import folder, kinds, read, whole
from jaxseg.published.folder import Pretrained, load, read_card

__all__ = ['Pretrained', 'convert', 'describe', 'load', 'main']

# What each command takes.
COMMANDS = {
  'convert': ('kind', 'source', 'features', 'output', 'size'),
  'show': (),
  'export': ('workdir', 'stage', 'checkpoint', 'output'),
}


def convert(
  kind: str, source: str, output: str, *, features: str = '', size: int = 0
) -> dict[str, Any]:
  """Converts a file of published weights.

  Args:
    kind: one of `kinds.KINDS`.
    source: the file: of torch.save, safetensors, .npz or a StyleGAN2-ADA .pkl.
    output: folder to write; must not exist.
    features: of kind 'lpips', torchvision's file of the network.
    size: side of the generator's images, if it is to be checked.

  Returns:
    what was found, as in pretrained.json.

  Raises:
    UserError: an unknown kind, files that cannot be read or are not of this
      kind, a folder that exists; nothing is written then.
  """
  whole.refuse_existing(output)
  if kind not in kinds.KINDS:
    raise UserError(
      f'--kind={kind} is unknown, expected one of {", ".join(kinds.KINDS)}'
    )
  opened = read.open_source(source)
  second = read.open_source(features) if features else None
  converted = kinds.convert(kind, opened, second, size)
  files = [source, features] if features else [source]
  ignored = opened.left() + opened.unread()
  return folder.save(converted, output, files, ignored)


def describe(card: dict[str, Any]) -> str:
  """What a folder holds, as a text of some lines."""
  lines = [f'kind {card["kind"]}']
  for source in card['sources']:
    lines.append(
      f'from {source["file"]}, {source["bytes"]:,} bytes, sha256 '
      f'{source["sha256"][:16]}...'
    )
  for name, network in card['networks'].items():
    lines.append(
      f'{name}: {network["arch"]}, {network["parameters"]:,} parameters'
    )
    lines.append(f'  {_settings(network)}')
  for name, shape in card['extras'].items():
    if name == 'w_avg':
      use = '; codes of e are relative to it' if card['adds_w_avg'] else ''
      lines.append(f'w_avg: {" x ".join(map(str, shape))}{use}')
    elif not name.startswith('noise/'):
      lines.append(f'{name}: {tuple(shape)}')
  maps = sum(name.startswith('noise/') for name in card['extras'])
  lines += [f'noise: {maps} maps'] if maps else []
  lines += [f'note: {remark}' for remark in card['remarks']]
  if ignored := card['ignored']:
    some = ', '.join(ignored[:5])
    more = f' and {len(ignored) - 5} more' if ignored[5:] else ''
    lines.append(f'not converted: {some}{more}')
  return '\n'.join(lines)


def _settings(network):
  """Settings of a network, the sizes that matter first."""
  settings = dict(network['settings'])
  parts = []
  if side := settings.pop('resolution', None):
    parts.append(f'{side} x {side}')
  if network['arch'] == 'stylegan2_generator':
    channels, classes = settings.pop('channels'), settings.pop('num_classes')
    parts += [f'{channels} channel{"s" * (channels > 1)}']
    parts += [f'{classes} label logits' if classes else 'no labels']
    parts += [f'n_latent {num_latents(side)}']
  for name, value in settings.items():
    if isinstance(value, list | tuple):
      value = ' '.join(map(str, value))
    parts.append(f'{name} {value}')
  return ', '.join(parts)


def _define_flags(to=flags.FLAGS):
  def define(name, text, default=None):
    flags.DEFINE_string(name, default, text, flag_values=to)

  define('kind', f'Of the file: {", ".join(kinds.KINDS)}.')
  define('source', 'File of published weights.')
  define('features', 'Of kind lpips: the file of the network.', '')
  define('output', 'Folder to write.')
  flags.DEFINE_integer(
    'size', 0, 'Side of the images, to be checked.', flag_values=to
  )
  define('workdir', 'Of export: a trained workdir.')
  define('stage', 'Of export: default: the last one with a generator.', '')
  define('checkpoint', 'Of export: newest, best or a step.', 'newest')


def _command(args, words):
  """Returns the command and its words; refuses flags it does not take."""
  usage = 'python -m jaxseg.pretrained ' + '|'.join(COMMANDS)
  if not words or words[0] not in COMMANDS:
    found = repr(words[0]) if words else 'nothing'
    raise UserError(f'found {found}, expected a command; {usage}')
  command, *rest = words
  if len(rest) != (command == 'show'):
    raise UserError(
      f'{command}: found {" ".join(rest) or "nothing"} after it, expected '
      f'{"one folder" if command == "show" else "flags alone"}; {usage}'
    )
  every = {name for names in COMMANDS.values() for name in names}
  for name in sorted(every - set(COMMANDS[command])):
    if args[name].present:
      takes = ', '.join(f'--{n}' for n in COMMANDS[command]) or 'none'
      raise UserError(
        f'--{name} is no flag of {command}, expected {takes}; remove it'
      )
  optional = ('features', 'size', 'stage', 'checkpoint')
  for name in sorted(set(COMMANDS[command]) - set(optional)):
    if not args[name].value:
      raise UserError(f'--{name} is missing; {usage}')
  return command, rest


def main(argv: list[str]) -> None:
  """Runs the command line."""
  with errors.friendly():
    command, words = _command(flags.FLAGS, argv[1:])
    if command == 'show':
      card = read_card(words[0])
      folder.refuse_changed(words[0])
      writers.say(describe(card))
      return
    # Then it is as with Ctrl-C: what is half written is removed.
    old = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
      _write(command, flags.FLAGS)
    except KeyboardInterrupt:
      output = flags.FLAGS.output
      became = 'is whole' if folder.is_one(output) else 'was not written'
      print(f'jaxseg: interrupted; {output} {became}', file=sys.stderr)
      raise SystemExit(130) from None
    finally:
      signal.signal(signal.SIGTERM, old)


def _write(command, args):
  """Runs `convert` or `export`."""
  start = time.monotonic()
  if command == 'convert':
    card = convert(
      args.kind, args.source, args.output,
      features=args.features, size=args.size,
    )  # fmt: skip
  else:
    from jaxseg.published import export

    card = export.export(args.workdir, args.output, args.stage, args.checkpoint)
  writers.say(describe(card))
  writers.say(f'{args.output}: written in {time.monotonic() - start:.1f} s')


if __name__ == '__main__':
  _define_flags()
  app.run(main, flags_parser=parse_flags)

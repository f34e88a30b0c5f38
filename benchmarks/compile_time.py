"""Times how long each program takes to build: first start, and second.

  python -m benchmarks.compile_time

Each stage of the configs is a fresh process with an empty compilation cache,
then a second one with the cache that the first left. Nothing is trained: the
programs are built from shapes alone. README.md beside this file says more.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks import speed
from jaxseg import guard, plan_compile, runtime, workdir
from jaxseg import stage as stages
from jaxseg.errors import UserError, friendly
from jaxseg.methods import perceptual

ROOT = Path(__file__).resolve().parents[1]
# Together they have every method, each at the width of a laptop, at 64x64.
CONFIGS = (
  'quickstart.py:avatars',
  'baselines.py:avatars',
  'cyclegan.py:avatars',
)
PROGRAMS = ('init', 'train_step', 'pictures', 'predict', 'refine')
FIRST, SECOND = 60.0, 10.0  # seconds that a program may take, on 2 cores

_CONFIGS = flags.DEFINE_multi_string(
  'configs', [f'configs/{name}' for name in CONFIGS], 'FILE[:ARGUMENT].'
)
_STAGES = flags.DEFINE_list('stages', [], 'Stages of the configs; empty: all.')
_PROGRAMS = flags.DEFINE_list('programs', list(PROGRAMS), 'What to build.')
_NUM_CLASSES = flags.DEFINE_integer('num_classes', 6, 'Labels.')
_RESOLUTION = flags.DEFINE_integer(
  'side', 64, 'Side of the images; 0: that of each config.'
)
_CHILD = flags.DEFINE_string(
  'build_with_cache', '', 'Builds in this process, with this cache folder.'
)
flags.declare_key_flag('clock')  # defined in `benchmarks.speed`

# Program -> seconds to lower, to compile; instructions of the result.
Built = dict[str, tuple[float, float, int]]


def load(name: str, side: int) -> ConfigDict:
  """Returns a config file's config for images of this side; 0: its own.

  Raises:
    UserError: there is no such file.
  """
  file, _, arg = name.partition(':')
  path = Path(file) if Path(file).is_absolute() else ROOT / file
  if not path.is_file():
    raise UserError(f'--configs names {file!r}, which is not a file.')
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(*[arg] if arg else [])
  if side:
    config.data.resolution, config.data.width = side, 0
  return perceptual.resolve_kinds(config)


def programs(
  config: ConfigDict, stage: str, num_classes: int
) -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
  """Yields (name, jitted function, shapes of its arguments) of a stage."""
  method = workdir.make_method(config, stage, num_classes)
  state = workdir.abstract_state(config, stage, num_classes)
  source = config[stage].init_from
  previous = (
    workdir.abstract_state(config, source, num_classes) if source else None
  )
  batch = plan_compile.batch_shapes(config, stage, num_classes)
  few = {k: v.update(shape=(8, *v.shape[1:])) for k, v in batch.items()}
  images = few['image'].update(
    shape=(config.eval.batch_size, *few['image'].shape[1:])
  )
  key = jax.eval_shape(lambda: jax.random.key(0))
  once = stages.ONCE if jax.default_backend() == 'cpu' else None
  init = jax.jit(method.init, compiler_options=once)
  yield 'init', init, (key, previous)
  step = jax.jit(guard.guarded(method.train_step), donate_argnums=(0, 1))
  yield 'train_step', step, (state, guard.healthy(), batch)
  if method.pictures:
    shown = {k: few[k] for k in ('image', 'label')}
    yield 'pictures', jax.jit(method.pictures), (state, shown)
  if method.predict:
    yield 'predict', jax.jit(method.predict), (state, images)
  if method.refine:
    yield 'refine', jax.jit(method.refine), (state, images)


def build(
  config: ConfigDict, stage: str, num_classes: int, names: list[str], clock: str
) -> Built:
  """Builds a stage's programs in this process."""
  now = time.perf_counter if clock == 'wall' else time.process_time
  found = {}
  for name, function, shapes in programs(config, stage, num_classes):
    if name not in names:
      continue
    start = now()
    lowered = function.lower(*shapes)
    middle = now()
    compiled = lowered.compile()
    end = now()
    count = compiled.as_text().count(' = ')
    found[name] = middle - start, end - middle, count
  return found


def build_apart(name: str, stage: str, cache: str) -> Built | str:
  """`build` in a process of its own; the error's last line where it fails."""
  argv = [sys.executable, '-m', 'benchmarks.compile_time']
  argv += [f'--configs={name}', f'--stages={stage}']
  argv += [f'--build_with_cache={cache}', f'--side={_RESOLUTION.value}']
  argv += [f'--num_classes={_NUM_CLASSES.value}']
  argv += [f'--programs={",".join(_PROGRAMS.value)}']
  argv += [f'--clock={flags.FLAGS.clock}']
  done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['no message']
    return f'exit code {done.returncode}: {lines[-1]}'
  return json.loads(done.stdout.strip().splitlines()[-1])


def table(found: dict[str, tuple[Built, Built]]) -> str:
  """Markdown, a row a program; bold: more than the seconds allowed."""
  rows = [
    ['program', 'instructions', 'first: trace, s', 'compile, s', 'second, s']
  ]
  rows.append(['---'] + 4 * ['--:'])
  bold = lambda text, over: f'**{text}**' if over else text
  for stage, (first, second) in found.items():
    for name, (lower, compiled, count) in first.items():
      again = sum(second[name][:2])
      rows.append(
        [
          f'{stage} {name}',
          f'{count:,}',
          f'{lower:.1f}',
          bold(f'{compiled:.1f}', lower + compiled > FIRST),
          bold(f'{again:.1f}', again > SECOND),
        ]
      )
  return speed.markdown(rows)


def check_flags() -> None:
  """Raises UserError for a value that cannot work."""
  unknown = sorted(set(_PROGRAMS.value) - set(PROGRAMS))
  if unknown or not _PROGRAMS.value:
    raise UserError(
      f'--programs has {", ".join(unknown) or "no program"}; valid, separated '
      f'by commas: {", ".join(PROGRAMS)}.'
    )
  if _NUM_CLASSES.value < 2:
    raise UserError(
      f'--num_classes is {_NUM_CLASSES.value}, must be at least 2.'
    )


def chosen() -> list[tuple[str, str]]:
  """(config file, stage) of what the flags ask for.

  Raises:
    UserError: a stage that no config has.
  """
  pairs = [
    (name, stage)
    for name in _CONFIGS.value
    for stage in load(name, _RESOLUTION.value).stages
  ]
  known = {stage for _, stage in pairs}
  unknown = sorted(set(_STAGES.value) - known)
  if unknown:
    raise UserError(
      f'--stages has {", ".join(unknown)}; the configs have '
      f'{", ".join(sorted(known))}.'
    )
  return [p for p in pairs if not _STAGES.value or p[1] in _STAGES.value]


def run() -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  check_flags()
  found, failed = {}, []
  for name, stage in chosen():
    with tempfile.TemporaryDirectory(prefix='jaxseg_compile_') as cache:
      first = build_apart(name, stage, cache)
      second = (
        first if isinstance(first, str) else build_apart(name, stage, cache)
      )
    label = f'{Path(name.partition(":")[0]).stem}.{stage}'
    if isinstance(second, str):
      failed.append(f'{label} cannot be built ({second}).')
    else:
      found[label] = first, second
  lines = [
    f'Images of side {_RESOLUTION.value or "of the config"}, '
    f'{_NUM_CLASSES.value} classes, {flags.FLAGS.clock} time; '
    f'{speed.machine()} At most {FIRST:g} s at first, {SECOND:g} s from the '
    'cache, else bold.',
    table(found),
    *failed,
  ]
  return '\n\n'.join(lines)


def main(argv: list[str]) -> None:
  """Prints the report."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  with friendly():
    if not _CHILD.value:
      print(run())
      return
    runtime.use_compilation_cache(_CHILD.value)
    (name,), (stage,) = _CONFIGS.value, _STAGES.value
    config = load(name, _RESOLUTION.value)
    built = build(
      config, stage, _NUM_CLASSES.value, _PROGRAMS.value, flags.FLAGS.clock
    )
    print(json.dumps(built))


if __name__ == '__main__':
  # The user's own cache would not be empty.
  os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)
  app.run(main)

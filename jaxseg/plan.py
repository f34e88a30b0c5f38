"""What a config needs and how fast it should be, on devices that are not here.

  python -m jaxseg.train --config=configs/celeba_mask.py:30 --plan \
    --devices=tpu-v5e:64
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ml_collections import ConfigDict

import jaxseg
from jaxseg import config as jaxseg_config
from jaxseg import plan_chips, plan_text, writers
from jaxseg import workdir as workdirs
from jaxseg.data import sources
from jaxseg.errors import UserError
from jaxseg.methods import perceptual
from jaxseg.plan_compile import Measured

LIBTPU = "pip install 'libtpu==0.0.42.*'"  # what jax 0.10 pins
COUNT_FLAG = '--xla_force_host_platform_device_count'


def report(
  config: ConfigDict,
  devices: str,
  num_classes: int | None = None,
  compiled: bool = True,
) -> str:
  """Returns what each stage needs and how long its steps should take.

  Args:
    config: the experiment's.
    devices: see `plan_chips.parse`.
    num_classes: K; None: of the data set, which must then be there.
    compiled: whether to compile each stage's step, which can take minutes;
      without, memory and what is exchanged stay unknown.

  Raises:
    UserError: unknown devices, a config that training refuses, a data set that
      cannot be opened, or a step that cannot be compiled.
  """
  named = plan_chips.parse(devices)
  jaxseg_config.check(config)
  config = perceptual.resolve_kinds(config).unlock()
  notes = _fit_mesh(config, named.count)
  for stage in config.stages:
    notes += _round_batches(config, stage, named.count)
  if num_classes is None:
    num_classes = _num_classes(config)
  # Only the CPU and, with libtpu, TPUs have a compiler that needs no device.
  exact = named.kind == 'cpu' or bool(
    named.topology and importlib.util.find_spec('libtpu')
  )
  notes += _how(named, exact, compiled)
  parts = [plan_text.heading(named, config, notes)]
  for stage in config.stages:
    if compiled:
      writers.say(f'compiling {stage}, which can take minutes ...')
    measured = measure(config, stage, num_classes, named, compiled)
    parts.append(plan_text.stage(config, stage, named, measured))
  parts.append(plan_text.model(named.chip))
  return '\n\n'.join(parts)


def measure(
  config: ConfigDict,
  stage: str,
  num_classes: int,
  named: plan_chips.Devices,
  compiled: bool = True,
) -> Measured:
  """Traces and compiles one stage's step in a process of its own.

  Raises:
    UserError: the process failed.
  """
  libtpu = importlib.util.find_spec('libtpu')
  request = {
    'topology': named.topology if libtpu and compiled else '',
    'count': named.count,
    'platform': named.kind.partition('-')[0],
    'num_classes': num_classes,
    'compiled': compiled,
  }
  with tempfile.TemporaryDirectory(prefix='jaxseg_plan_') as folder:
    workdirs.save_config(folder, config)
    (Path(folder) / 'plan.json').write_text(json.dumps(request))
    done = subprocess.run(
      [sys.executable, '-m', 'jaxseg.plan_compile', folder, stage],
      env=_environment(named.count),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    answer = Path(folder) / f'{stage}.json'
    if not answer.exists():
      raise UserError(_failed(stage, named, done))
    found = json.loads(answer.read_text())
  if 'error' in found:
    raise UserError(found['error'])
  return Measured(**found)


def _environment(count):
  """No accelerator is looked for; as many CPU devices as asked for."""
  flags = os.environ.get('XLA_FLAGS', '').split()
  package = str(Path(jaxseg.__file__).parents[1])
  paths = [package, *filter(None, [os.environ.get('PYTHONPATH')])]
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(count),
    'TPU_SKIP_MDS_QUERY': '1',
    # No chip is used, so that others may run or plan at the same time.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'XLA_FLAGS': ' '.join(f for f in flags if not f.startswith(COUNT_FLAG)),
    'PYTHONPATH': os.pathsep.join(paths),
  }


def _failed(stage, named, done):
  """The sentence for a process that ended without an answer."""
  chip = f'{named.count} x {named.chip.name}'
  if done.returncode < 0:
    return (
      f'compiling config.{stage} for {chip} was ended by signal '
      f'{-done.returncode}, usually for lack of memory on this machine; plan '
      'on a larger one, or give --plan_compile=false.'
    )
  lines = [line for line in done.stderr.splitlines() if line.strip()]
  return (
    f'config.{stage} cannot be compiled for {chip}: '
    f'{lines[-1].strip() if lines else "no reason was given"} Give '
    '--plan_compile=false for a plan without memory and exchange.'
  )


def _num_classes(config):
  """K of the data set."""
  try:
    return len(sources.load(config.data).class_names)
  except UserError as error:
    raise UserError(
      f'{error} To plan without the data, tell the number of its classes: '
      '--classes=K.'
    ) from error


def _fit_mesh(config, count):
  """Warnings about config.mesh; it must not ask for more than there is."""
  model = config.mesh.model
  data = plan_text.mesh_sizes(config, count)[0] if model > 0 else 0
  used = data * model
  if data < 1 or used > count:
    raise UserError(
      f'config.mesh asks for data {config.mesh.data} x model {model} devices, '
      f'but --devices names {count}; set config.mesh.data=-1 to use all.'
    )
  if used == count:
    return []
  return [
    f'config.mesh uses {used} of {count} devices (data {data}, model {model}); '
    'config.mesh.data=-1 uses all.'
  ]


def _round_batches(config, stage, devices):
  """Raises batches that the devices cannot share; returns warnings."""
  fields = config[stage]
  count = plan_text.mesh_sizes(config, devices)[0]
  each = count * plan_text.parts(fields)
  warnings = []
  for name in ('batch_size', 'unlabelled_batch_size'):
    size = fields[name]
    if size % each:
      fields[name] = -(-size // each) * each
      warnings.append(
        f'config.{stage}.{name} is {size}, which {count} devices cannot share '
        f'evenly and training refuses; planned with {fields[name]}.'
      )
  return warnings


def _how(named, exact, compiled):
  """Whose compiler made the numbers, told in a sentence."""
  if not compiled:
    return [
      'Nothing was compiled: memory is not known, and the times are the least '
      'that can be, with perfect fusion and each gradient exchanged once.'
    ]
  if exact:
    return []
  lacks = (
    f"the TPU's compiler is missing ({LIBTPU} brings it)"
    if named.topology
    else 'there is no compiler for this chip without one'
  )
  return [
    f'Compiled for {named.count} CPU devices, as {lacks}: memory, memory '
    'traffic and exchange are those of the CPU program (which, unlike those of '
    'accelerators, reduces the parts of a gradient one by one), the times '
    f'those of {named.chip.name}.'
  ]

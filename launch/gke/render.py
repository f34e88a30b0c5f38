"""Prints the manifest that trains on TPU slices of a GKE cluster.

  python -m launch.gke.render --name=faces --tpu=v5e --topology=8x8 \\
    --image=us-docker.pkg.dev/PROJECT/jaxseg/tpu:1 --claim=runs -- \\
    --config=configs/faces.py:30 --workdir=/runs/faces | kubectl apply -f -

The cluster needs the JobSet operator and, for every slice, a node pool of this
TPU and topology. The workdir is in a volume that all hosts share, mounted at
/runs: --claim=NAME, a PersistentVolumeClaim with ReadWriteMany (Filestore), or
--bucket=NAME, a Cloud Storage bucket with a hierarchical namespace (gcsfuse
renames folders in one step only there, which checkpoints rely on).
"""

import json
import math
import re
import string
import sys
from pathlib import Path
from typing import NamedTuple

from launch import commands

TEMPLATE = Path(__file__).with_name('jobset.yaml.in')
MOUNT = '/runs'


class Tpu(NamedTuple):
  """What GKE calls a TPU, and its shapes.

  Source: cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.
  """

  accelerator: str
  dimensions: int
  # Slices of one host, by their chips; larger ones have 4 chips a host.
  one_host: tuple[int, ...]
  max_chips: int


TPUS = {
  'v4': Tpu('tpu-v4-podslice', 3, (4,), 4096),
  'v5e': Tpu('tpu-v5-lite-podslice', 2, (1, 4, 8), 256),
  'v5p': Tpu('tpu-v5p-slice', 3, (4,), 8960),
  'v6e': Tpu('tpu-v6e-slice', 2, (1, 4, 8), 256),
}
CHIPS_PER_HOST = 4
SMALL_3D = ('2x2x1', '2x2x2', '2x2x4', '2x4x4')
TOPOLOGIES_2D = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')


def parser() -> commands.Parser:
  """The launcher's own arguments."""
  p = commands.Parser(__doc__)
  p.add_argument('--name', required=True, help='of the JobSet')
  p.add_argument('--tpu', required=True, choices=TPUS)
  p.add_argument('--topology', required=True, help='e.g. 4x8, or 2x2x4')
  p.add_argument('--slices', type=int, default=1)
  p.add_argument('--image', required=True, help='of docker/Dockerfile.tpu')
  p.add_argument('--claim', help='PersistentVolumeClaim of the workdir')
  p.add_argument('--bucket', help='Cloud Storage bucket of the workdir')
  p.add_argument('--service_account', default='default')
  p.add_argument('--spot', action='store_true')
  p.add_argument('--max_restarts', type=int, default=100)
  p.add_argument(
    '--grace',
    type=int,
    default=90,
    help='seconds from SIGTERM to SIGKILL; a spot node has 30 at most',
  )
  return p


def hosts(tpu: str, topology: str) -> tuple[int, int]:
  """Hosts of a slice and chips of each, refusing what GKE does not offer."""
  kind = TPUS[tpu]
  if not re.fullmatch(r'\d+(x\d+)*', topology):
    commands.refuse(f'--topology={topology}, expected e.g. 4x8, or 2x2x4.')
  sides = [int(n) for n in topology.split('x')]
  if kind.dimensions == 2 and topology not in TOPOLOGIES_2D:
    commands.refuse(
      f'--topology={topology} of --tpu={tpu}, expected one of '
      f'{", ".join(TOPOLOGIES_2D)}.'
    )
  whole = len(sides) == 3 and not any(n % 4 for n in sides)
  if kind.dimensions == 3 and not (
    topology in SMALL_3D or (whole and sides == sorted(sides))
  ):
    commands.refuse(
      f'--topology={topology} of --tpu={tpu}, expected one of '
      f'{", ".join(SMALL_3D)}, or three multiples of 4, the smallest first, '
      'e.g. 4x4x8.'
    )
  chips = math.prod(sides)
  if chips > kind.max_chips:
    commands.refuse(
      f'--topology={topology} has {chips} chips, --tpu={tpu} at most '
      f'{kind.max_chips}.'
    )
  if chips in kind.one_host:
    return 1, chips
  return chips // CHIPS_PER_HOST, CHIPS_PER_HOST


def check(args, workdir: str) -> None:
  """Refuses names and numbers that Kubernetes would refuse later."""
  if not re.fullmatch(r'[a-z]([a-z0-9-]{0,38}[a-z0-9])?', args.name):
    commands.refuse(
      f'--name={args.name}, expected at most 40 small letters, digits and '
      'dashes, a letter first.'
    )
  for name, least in (('slices', 1), ('max_restarts', 0), ('grace', 30)):
    if getattr(args, name) < least:
      commands.refuse(
        f'--{name}={getattr(args, name)}, expected {least} or more.'
      )
  if bool(args.claim) == bool(args.bucket):
    commands.refuse(
      'the workdir needs one volume that all hosts share: either --claim=NAME '
      'or --bucket=NAME.'
    )
  if not workdir.startswith(f'{MOUNT}/'):
    commands.refuse(
      f'--workdir={workdir}, expected a folder of the mounted volume, e.g. '
      f'--workdir={MOUNT}/{args.name}.'
    )


def manifest(args, training: list[str]) -> str:
  """The JobSet as YAML; values are written as JSON, which YAML contains."""
  number, chips = hosts(args.tpu, args.topology)
  selector = {
    'cloud.google.com/gke-tpu-accelerator': TPUS[args.tpu].accelerator,
    'cloud.google.com/gke-tpu-topology': args.topology,
  }
  if args.spot:
    selector['cloud.google.com/gke-spot'] = 'true'
  if args.claim:
    volume = {'persistentVolumeClaim': {'claimName': args.claim}}
  else:
    volume = {
      'csi': {
        'driver': 'gcsfuse.csi.storage.gke.io',
        'volumeAttributes': {
          'bucketName': args.bucket,
          'mountOptions': 'implicit-dirs',
        },
      }
    }
  several = number * args.slices > 1
  values = {
    'name': args.name,
    'max_restarts': args.max_restarts,
    'slices': args.slices,
    'hosts': number,
    'annotations': {'gke-gcsfuse/volumes': 'true'} if args.bucket else {},
    'service_account': args.service_account,
    'grace': args.grace,
    'node_selector': selector,
    'image': args.image,
    'args': [*(['--distributed'] if several else []), *training],
    'chips_per_host': chips,
    'mount': MOUNT,
  }
  written = {name: json.dumps(value) for name, value in values.items()}
  ((kind, fields),) = volume.items()
  written['volume'] = f'{kind}: {json.dumps(fields)}'
  return string.Template(TEMPLATE.read_text()).substitute(written)


def main(argv: list[str]) -> int:
  """Entry point of `python -m launch.gke.render`; returns the exit code."""
  args, training = parser().parse(argv)
  training = commands.training_arguments(training)
  check(args, commands.value(training, 'workdir'))
  # With --dry-run too: printing is all that this launcher does.
  print(manifest(args, training), end='')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))

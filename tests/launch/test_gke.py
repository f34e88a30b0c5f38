"""The manifest for GKE: its shape, and the slices that it refuses."""

import pytest

yaml = pytest.importorskip('yaml')

TRAINING = ['--', '--config=configs/faces.py:30', '--workdir=/runs/a b']
IMAGE = 'us-docker.pkg.dev/p/jaxseg/tpu:1'


@pytest.fixture
def render(capsys):
  """Renders in this process; returns (exit code, stdout, stderr)."""
  from launch.gke import render

  def run(*arguments, training=TRAINING):
    given = {'--name': 'faces', '--tpu': 'v5e', '--topology': '8x8',
             '--image': IMAGE, '--claim': 'runs'}  # fmt: skip
    given.update(a.split('=') for a in arguments if '=' in a)
    flags = [f'{k}={v}' for k, v in given.items() if v != 'none']
    flags += [a for a in arguments if '=' not in a]
    try:
      code = render.main([*flags, *training])
    except SystemExit as end:
      code = end.code
    return code, *capsys.readouterr()

  return run


@pytest.fixture
def job(render):
  """The JobSet and its one kind of Job and Pod."""

  def job(*arguments):
    code, out, err = render(*arguments)
    assert code == 0, err
    jobset = yaml.safe_load(out)
    (kind,) = jobset['spec']['replicatedJobs']
    return jobset, kind, kind['template']['spec']['template']

  return job


def test_manifest(job):
  jobset, kind, pod = job('--dry-run', '--slices=2')
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert jobset['kind'] == 'JobSet'
  assert jobset['metadata']['name'] == 'faces'
  assert kind['replicas'] == 2
  spec = kind['template']['spec']
  assert spec['parallelism'] == spec['completions'] == 16
  (train,) = pod['spec']['containers']
  assert train['image'] == IMAGE
  assert train['args'] == [
    '--distributed', '--config=configs/faces.py:30', '--workdir=/runs/a b',
  ]  # fmt: skip
  assert train['resources']['limits'] == {'google.com/tpu': 4}
  assert pod['spec']['nodeSelector'] == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
    'cloud.google.com/gke-tpu-topology': '8x8',
  }
  assert pod['spec']['terminationGracePeriodSeconds'] == 90
  mounts = {m['name']: m['mountPath'] for m in train['volumeMounts']}
  volumes = {v['name']: v for v in pod['spec']['volumes']}
  assert mounts.keys() == volumes.keys()
  assert mounts['runs'] == '/runs'
  assert volumes['runs']['persistentVolumeClaim'] == {'claimName': 'runs'}


def test_restarts_are_those_of_the_exit_codes(job):
  from launch import commands

  jobset, kind, pod = job('--max_restarts=7')
  policy = jobset['spec']['failurePolicy']
  assert policy['maxRestarts'] == 7
  (rule,) = policy['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  spec = kind['template']['spec']
  assert spec['backoffLimit'] == 0
  # Kubernetes takes a podFailurePolicy only with this one.
  assert pod['spec']['restartPolicy'] == 'Never'
  (fails,) = spec['podFailurePolicy']['rules']
  assert fails['action'] == 'FailJob'
  codes = fails['onExitCodes']
  assert codes['operator'] == 'In'
  assert codes['containerName'] == pod['spec']['containers'][0]['name']
  ends = {*range(1, 8), 75, 134, 137, 143}
  assert {c for c in ends if not commands.may_restart(c)} == set(
    codes['values']
  )


def test_bucket_and_spot(job):
  _, _, pod = job('--claim=none', '--bucket=mine', '--spot')
  assert pod['metadata']['annotations'] == {'gke-gcsfuse/volumes': 'true'}
  (volume,) = [v for v in pod['spec']['volumes'] if v['name'] == 'runs']
  assert volume['csi']['driver'] == 'gcsfuse.csi.storage.gke.io'
  assert volume['csi']['volumeAttributes']['bucketName'] == 'mine'
  assert pod['spec']['nodeSelector']['cloud.google.com/gke-spot'] == 'true'


@pytest.mark.parametrize(
  'tpu, topology, hosts, chips',
  [
    ('v5e', '1x1', 1, 1),
    ('v5e', '2x4', 1, 8),
    ('v6e', '4x4', 4, 4),
    ('v6e', '16x16', 64, 4),
    ('v4', '2x2x1', 1, 4),
    ('v5p', '2x2x4', 4, 4),
    ('v5p', '4x4x8', 32, 4),
  ],
)
def test_hosts_of_a_slice(job, tpu, topology, hosts, chips):
  _, kind, pod = job(f'--tpu={tpu}', f'--topology={topology}')
  (train,) = pod['spec']['containers']
  assert kind['template']['spec']['parallelism'] == hosts
  assert train['resources']['limits']['google.com/tpu'] == chips
  # One process needs no others.
  assert ('--distributed' in train['args']) == (hosts > 1)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--topology=3x3'], '--topology=3x3 of --tpu=v5e, expected one of 1x1'),
    (['--topology=2x2x4'], '--topology=2x2x4 of --tpu=v5e'),
    (['--tpu=v4', '--topology=4x4'], '--topology=4x4 of --tpu=v4, expected'),
    (['--tpu=v4', '--topology=8x4x4'], 'the smallest first'),
    (['--tpu=v4', '--topology=16x16x32'], '8192 chips, --tpu=v4 at most 4096'),
    (['--topology=big'], '--topology=big, expected e.g. 4x8'),
    (['--tpu=v9'], "invalid choice: 'v9'"),
    (['--name=A_b'], '--name=A_b, expected at most 40 small letters'),
    (['--slices=0'], '--slices=0, expected 1 or more.'),
    (['--grace=5'], '--grace=5, expected 30 or more.'),
    (['--claim=none'], 'either --claim=NAME or --bucket=NAME.'),
    (['--bucket=b'], 'either --claim=NAME or --bucket=NAME.'),
  ],
)
def test_mistakes_are_one_sentence(render, arguments, message):
  code, out, err = render(*arguments)
  assert (code, out, err.count('\n')) == (2, '', 1)
  assert message in err


def test_the_workdir_is_in_the_volume(render):
  training = ['--', '--config=c', '--workdir=runs/a']
  code, _, err = render(training=training)
  assert code == 2
  assert '--workdir=runs/a, expected a folder of the mounted volume' in err

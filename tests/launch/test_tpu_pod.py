"""The TPU script: its dry run, and its loop with a stub of gcloud."""

import os
import signal
import subprocess

import pytest

NAME = ['--name=faces', '--zone=us-west4-a']
NEW = [*NAME, '--type=v5litepod-16', '--version=v2-alpha-tpuv5-lite', '--spot']

# Two hosts. What training ends with is in $CODES, a line per attempt; the state
# of the slice in the file `state`. A host without a code is lost.
GCLOUD = r"""#!/bin/bash
cd "$(dirname "$0")"
echo "$*" >>calls
case "$*" in
  *describe*) cat state ;;
  *create*) echo READY >state ;;
  *delete*) rm state ;;
  *'test -e'*) exit ${SHARED:-0} ;;
  *'pkill -TERM'*) touch term ;;
  *'python -m jaxseg.train --distributed'*)
    echo x >>attempts
    read -ra codes < <(sed -n "$(wc -l <attempts)p" <<<"$CODES")
    [ -z "$WAIT" ] || { touch waits; until [ -e term ]; do sleep 0.05; done; }
    status=0
    for code in "${codes[@]}"; do
      [ $code = lost ] && echo PREEMPTED >state && status=255 && continue
      echo "jaxseg-exit $code"
      ((code)) && status=$code
    done
    exit $status ;;
esac
"""


@pytest.fixture
def pod(root, tmp_path):
  """Runs the script; returns its end and the calls of gcloud."""
  for name, text in (('gcloud', GCLOUD), ('git', '#!/bin/bash\n')):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  (tmp_path / 'state').write_text('READY\n')

  def pod(*arguments, workdir='/mnt/runs/a', wait=True, **env):
    process = subprocess.Popen(
      [root / 'launch/tpu_pod/train.sh', *arguments, '--',
       '--config=configs/quickstart.py', f'--workdir={workdir}'],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      env=os.environ | {
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'JAXSEG_RETRY_SECONDS': '0', **env,
      },
    )  # fmt: skip
    if not wait:
      return process
    out, err = process.communicate(timeout=60)
    log = tmp_path / 'calls'
    text = log.read_text() if log.exists() else ''
    calls = text.split('compute tpus tpu-vm ')
    return process.returncode, calls[1:], out, err

  return pod


def verbs(calls):
  """The order of the calls: what each does first, in a word."""
  words = {
    'describe': 'state', 'delete': 'delete', 'create': 'create', 'scp': 'copy',
    'python3 -m uv': 'install', 'pkill -KILL': 'clean', 'mkdir -p /': 'mark',
    'test -e': 'test', 'rm -f': 'unmark', 'jaxseg.train --dis': 'train',
  }  # fmt: skip
  return [next(w for key, w in words.items() if key in c) for c in calls]


START = ['clean', 'mark', 'test', 'unmark', 'train']
FIRST = ['state', 'copy', 'install', *START]


def test_dry_run_prints_the_commands(pod):
  code, calls, out, _ = pod('--dry-run', *NEW, workdir='/mnt/a b')
  assert (code, calls) == (0, [])
  lines = out.splitlines()
  assert lines[0] == (
    'gcloud compute tpus tpu-vm create faces --zone=us-west4-a '
    '--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot '
  )
  shown = [line for line in lines if '--distributed' in line]
  assert len(shown) == 1 and '--worker=all' in shown[0]
  # What the host's shell is given, unquoted once.
  unquoted = subprocess.run(
    ['bash', '-c', f'gcloud() {{ echo "${{!#}}"; }}; {shown[0]}'],
    capture_output=True, text=True,
  ).stdout  # fmt: skip
  assert unquoted.strip() == (
    '--command=cd jaxseg && .venv/bin/python -m jaxseg.train --distributed '
    '--config=configs/quickstart.py --workdir=/mnt/a\\ b ; '
    'echo jaxseg-exit $?'
  )
  assert 'create' not in pod('--dry-run', *NAME)[2]


def test_done_after_one_start(pod):
  code, calls, _, _ = pod(*NAME, '--setup=mount it', CODES='0 0')
  assert code == 0
  assert verbs(calls) == FIRST
  assert "pkill -KILL -f '^[^ ]*python -m jaxseg.train'; mount it" in calls[3]


@pytest.mark.parametrize(
  'codes, code, starts',
  [
    ('75 75\n0 0', 0, 2),
    ('7 137\n75 0\n0 0', 0, 3),
    ('6 7', 6, 1),
    ('75 3', 3, 1),
    ('1 7', 1, 1),
    ('7 7\n7 7\n7 7\n0 0', 7, 3),
  ],
)
def test_restarts(pod, codes, code, starts):
  end, calls, _, err = pod(*NAME, '--restarts=2', CODES=codes)
  assert (end, verbs(calls).count('train')) == (code, starts), err
  assert verbs(calls)[: len(FIRST) + 1] == [*FIRST, 'state'][: len(calls)]


def test_a_preempted_slice_is_replaced(pod):
  code, calls, _, _ = pod(*NEW, CODES='75 lost\n0 0')
  assert code == 0
  assert verbs(calls) == [
    *FIRST, 'state', 'delete', 'create', 'copy', 'install', *START,
  ]  # fmt: skip


def test_a_slice_that_is_not_ours_is_not_replaced(pod):
  code, calls, _, err = pod(*NAME, CODES='7 lost')
  assert code == 2
  assert 'the TPU faces in us-west4-a is PREEMPTED, expected READY' in err
  assert not {'delete', 'create'} & set(verbs(calls))


def test_ctrl_c_lets_it_save(pod, tmp_path):
  process = pod(*NAME, wait=False, CODES='75 75', WAIT='1')
  while not (tmp_path / 'waits').exists():
    assert process.poll() is None
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=30)
  assert process.returncode == 75
  assert (tmp_path / 'attempts').read_text() == 'x\n'


@pytest.mark.parametrize(
  'arguments, message',
  [
    (NAME[:1], '--zone= is missing'),
    (NAME[1:], '--name= of the TPU is missing'),
    ([*NAME, '--type=v4-8'], '--type=v4-8 needs --version='),
    ([*NAME, '--spot'], '--spot and --version are for creating a slice'),
    ([*NAME, '--restarts=x'], '--restarts=x, expected 0 or more'),
    ([*NAME, '--nme=x'], 'unknown argument --nme=x'),
  ],
)
def test_mistakes_are_one_sentence(pod, arguments, message):
  code, calls, _, err = pod(*arguments)
  assert (code, calls, err.count('\n')) == (2, [], 1)
  assert message in err


def test_the_workdir_must_be_shared(pod):
  code, calls, _, err = pod(*NAME, workdir='runs/a')
  assert (code, calls) == (2, [])
  assert '--workdir=runs/a, expected a full path' in err
  code, _, _, err = pod(*NAME, SHARED='1')
  assert code == 2
  assert 'is not the same folder on all hosts' in err

"""The images: what they copy exists, what they install is what is required."""

import fnmatch
import re

import pytest

KINDS = {'cuda': 'jax[cuda12]', 'tpu': 'jax[tpu]'}


@pytest.fixture(params=KINDS)
def image(request, root):
  """(kind, [(instruction, arguments)]) of one Dockerfile."""
  text = (root / f'launch/docker/Dockerfile.{request.param}').read_text()
  text = re.sub(r'^#.*\n', '', text, flags=re.MULTILINE).replace('\\\n', '')
  lines = [line.split(maxsplit=1) for line in text.splitlines() if line]
  return request.param, [(word, rest) for word, rest in lines]


def arguments(image, word):
  return [rest for name, rest in image[1] if name == word]


def test_starts_from_a_python_that_the_project_supports(image, root):
  assert image[1][0][0] == 'FROM'
  version = re.fullmatch(r'python:(3\.\d+)-slim', image[1][0][1])[1]
  assert f'Python 3.11 or {version}' in (root / 'README.md').read_text()


def test_installs_the_requirements_and_the_plugin(image, root):
  """One pip call: JAX's plugin is then of the required version."""
  (install,) = [a for a in arguments(image, 'RUN') if 'pip install' in a]
  assert install.split()[-3:] == [
    '-r',
    'requirements.txt',
    f'"{KINDS[image[0]]}"',
  ]
  required = (root / 'requirements.txt').read_text()
  assert re.search(r'^jax>=[\d.]+,<[\d.]+$', required, re.MULTILINE)


def test_what_is_copied_exists_and_is_not_ignored(image, root):
  copied = [a.split() for a in arguments(image, 'COPY')]
  assert {source for source, _ in copied} == {
    'requirements.txt', 'jaxseg', 'configs', 'launch',
  }  # fmt: skip
  rules = (root / '.dockerignore').read_text().split('\n')
  for source, target in copied:
    assert (root / source).exists()
    assert target in (source, '.')
    ignored = False
    for rule in (r for r in rules if r and not r.startswith('#')):
      if fnmatch.fnmatch(source, rule.lstrip('!')):
        ignored = not rule.startswith('!')
    assert not ignored, source


def test_trains_as_an_ordinary_user(image):
  words = [word for word, _ in image[1]]
  assert words.index('USER') > words.index('RUN')
  assert arguments(image, 'USER') == ['jaxseg']
  assert arguments(image, 'ENTRYPOINT') == ['["python", "-m", "jaxseg.train"]']


def test_the_user_is_the_first_of_most_hosts(image):
  (user,) = [a for a in arguments(image, 'RUN') if 'useradd' in a]
  assert '--uid=1000' in user and user.endswith(' jaxseg')

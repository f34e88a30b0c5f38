"""CycleGAN for semi-supervised segmentation (Mondal et al. 2019).

  python -m jaxseg.train --config=configs/cyclegan.py:digits \
    --workdir=runs/cyclegan
  python -m jaxseg.train --config=configs/cyclegan.py:acdc,20% \
    --workdir=runs/cyclegan_acdc_20

Two stages: `partial`, the segmenter on the labelled images alone, and
`cyclegan`. With all labels, as `acdc,all`, one: `full`. They share segmenter,
optimiser and schedule. More are there for the ablation (the paper's table 2),
`no_cycle_s`, `no_cycle_i`, `no_disc_s`, `no_disc_i`: add them to
--config.stages. `python -m benchmarks.cyclegan` makes both tables.

`digits` takes 3 minutes on a CPU core; mIoU of `partial` .53, of `cyclegan` .37
on MNIST, .27 and .26 on optdigits: so short, it is no gain.

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py; `voc`, `cityscapes`
and `acdc` have the paper's image sizes, batches, networks and 400 epochs (at
20 % labels), and no augmentation: not for a CPU.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets

NAMES = {'voc': 'voc2012'}
# Height and width (0: as high), and steps of 400 epochs of 5 + 5 images; an
# epoch shows the 80 % of the training images that have no label once.
PAPER = {
  'voc2012': (200, 0, 680_000),
  'cityscapes': (128, 256, 190_000),
  'acdc': (200, 0, 84_000),
}
# The published code's, but for the betas of `partial` and `full`: there they
# are (.9, .999), and the rate stays.
ADAM = {
  'name': 'adam', 'lr': 2e-4, 'schedule': 'linear', 'hold': 0.25,
  'weight_decay': 0.0, 'b1': 0.5,
}  # fmt: skip
TERMS = {
  'cycle_s': 'lambda_2', 'cycle_i': 'lambda_3', 'disc_s': 'lambda_4',
  'disc_i': 'lambda_5',
}  # fmt: skip
LABELS = {
  'cycle_s': 'L_cycle^S', 'cycle_i': 'L_cycle^I', 'disc_s': 'L_disc^S',
  'disc_i': 'L_disc^I',
}  # fmt: skip


def as_in_paper(preset, height, width, steps):
  """The paper's sizes."""
  data = preset.config.data
  data.resolution, data.width = height, width
  data.fit = 'squeeze'
  for name, value in data.augment.items():
    data.augment[name] = type(value)()
  return preset._replace(
    total_steps=steps, batch_size=5, unlabelled_batch_size=5
  )


def stages(preset, width=64, blocks=9, **optimizer):
  """The stages on a preset's data."""
  common = dict(
    net={
      'arch': 'resnet_generator', 'norm': 'instance', 'width': width,
      'blocks': blocks,
    },
    optimizer=ADAM | optimizer,
    loss={'dice': 0.0},
    ema_half_life=0.0,
  )  # fmt: skip
  supervised = lambda label: preset.stage(
    'supervised', label=label, unlabelled_batch_size=0, **common
  )
  cyclegan = lambda **changes: preset.stage(
    'cyclegan', g_width=width, g_blocks=blocks, d_optimizer=ADAM, **common,
    **changes,
  )  # fmt: skip
  return {
    'full': supervised('Full'),
    'partial': supervised('Partial'),
    'cyclegan': cyclegan(label='CycleGAN'),
  } | {
    f'no_{term}': cyclegan(label=f'without {LABELS[term]}', **{weight: 0.0})
    for term, weight in TERMS.items()
  }


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'voc,20%', 'acdc,14,laptop'."""
  name = arg.partition(',')[0]
  if name in NAMES:
    arg = arg.replace(name, NAMES[name], 1)
    name = NAMES[name]
  preset, small = presets.load(arg), arg.endswith(',laptop')
  if name in PAPER and not small:
    preset = as_in_paper(preset, *PAPER[name])
    found = stages(preset)
  else:
    if small:
      preset = preset._replace(
        total_steps=1000, batch_size=4, unlabelled_batch_size=4
      )
    # Few steps need a higher rate; the discriminators keep theirs.
    found = stages(preset, width=16, blocks=4, lr=1e-3)
  config = jaxseg_config.add_stages(preset.config, **found)
  data = config.data
  # As in the paper, where images have a label or are unlabelled.
  data.unlabelled_includes_labelled = False
  whole = data.labelled_fraction == 1 or not (
    data.num_labelled or data.labelled_fraction
  )
  config.stages = ('full',) if whole else ('partial', 'cyclegan')
  return config

"""Trained methods at work on images: compiled once, any size in and out."""

import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from jaxseg import mean_field, parallel, workdir
from jaxseg.data import fit, transforms
from jaxseg.data.formats import images as image_files
from jaxseg.errors import UserError
from jaxseg.method import Prediction, TrainState
from jaxseg.ops.dense_crf import CRF


class System(NamedTuple):
  """One way to label images: a row of the tables.

  Attributes:
    name: 'U-Net', 'Ours-NO' (encoder only), 'Ours' (with test-time
      optimisation), 'U-Net+CRF' (followed by a dense CRF).
    stage: name of the stage it was trained in.
    apply: (state, images) -> Prediction.
    state: of that stage.
    refined: whether it uses test-time optimisation.
    crf: settings of the dense CRF that follows; None: none does.
  """

  name: str
  stage: str
  apply: Callable[[TrainState, jax.Array], Prediction]
  state: TrainState
  refined: bool = False
  crf: CRF | None = None


def systems(
  trained: workdir.Trained, refine: bool = True, crf: CRF | None = None
) -> list[System]:
  """Lists all that a trained workdir can label images with.

  A method with test-time optimisation gives two: 'LABEL-NO' without it and,
  if `refine`, 'LABEL' with it. A name that is taken gets its stage added. With
  `crf` each is followed by 'NAME+CRF'.
  """
  found = []
  for stage, (method, state, label) in trained.stages.items():
    if method.predict is None:
      continue
    taken = {name.removesuffix('-NO') for name, *_ in found}
    label = f'{label} ({stage})' if label in taken else label
    plain = label if method.refine is None else f'{label}-NO'
    found.append(System(plain, stage, method.predict, state))
    if refine and method.refine is not None:
      found.append(System(label, stage, method.refine, state, True))
  if crf is None:
    return found
  return [s for system in found for s in (system, with_crf(system, crf))]


def with_crf(system: System, crf: CRF) -> System:
  """The system whose labels a dense CRF changes."""
  return system._replace(name=f'{system.name}+CRF', crf=crf)


def choose(
  trained: workdir.Trained,
  stage: str | None = None,
  refine: bool = True,
  crf: CRF | None = None,
) -> System:
  """Returns the system of `stage`, refined if it can be and `refine` says so.

  Without a stage it is the last one with test-time optimisation, else the
  last one that predicts. With `crf` a dense CRF follows.

  Raises:
    UserError: no such stage, or it cannot label images.
  """
  able = {s: m for s, (m, _, _) in trained.stages.items() if m.predict}
  if not able:
    raise UserError(
      f'no trained stage can label images, found {list(trained.stages)}; '
      'train on: run the same training command again'
    )
  if stage is None:
    stage = ([s for s in able if able[s].refine] or list(able))[-1]
  if stage not in able:
    raise UserError(
      f'--stage={stage}: no trained stage of that name labels images, '
      f'expected one of {", ".join(able)}'
    )
  return [s for s in systems(trained, refine, crf) if s.stage == stage][-1]


def fingerprint(state: TrainState) -> str:
  """Returns step and checksum of a state's networks, e.g. '1200-9f3c01aa'."""
  return f'{int(state.step)}-{checksum((state.params, state.ema, state.extra))}'


def checksum(tree: Any) -> str:
  """Returns the checksum of arrays, random keys left out."""
  crc = 0
  for leaf in jax.tree.leaves(tree):
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      crc = zlib.crc32(np.asarray(leaf).tobytes(), crc)
  return f'{crc:08x}'


def compile_system(
  system: System, config, batch_size: int
) -> Callable[[np.ndarray], tuple[Prediction, float]]:
  """Compiles one program for batches of a fixed size, shared by all devices.

  Args:
    system: what to run.
    config: the run's; `data.resolution`, `data.width`, `data.channels` and
      `mesh.data` are read.
    batch_size: images at a time; rounded up to a multiple of the devices.

  Returns:
    A function of 1 to `batch_size` images, float32 [n, H, W, C] in [-1, 1],
    that returns their `Prediction` as NumPy arrays, and the seconds per image
    of a full batch, compilation left out.
  """
  shape = (*fit.size(config.data), config.data.channels)
  mesh = _mesh(config.mesh.data)
  run = compile_batches(system.apply, system.state, shape, batch_size, mesh)
  if system.crf is None:
    return run
  follow = compile_crf(system.crf, config, batch_size)

  def run_both(images):
    prediction, seconds = run(images)
    prediction, more = follow(prediction, images)
    return prediction, seconds + more

  return run_both


def compile_crf(
  crf: CRF, config, batch_size: int
) -> Callable[[Prediction, np.ndarray], tuple[Prediction, float]]:
  """Makes the program of a dense CRF; it is compiled when first called.

  Args:
    crf: its settings.
    config: as `compile_system`.
    batch_size: as `compile_system`.

  Returns:
    see `mean_field.runner`.
  """
  mesh = _mesh(config.mesh.data)
  return mean_field.runner(
    crf, lambda f, shape: compile_batches(f, (), shape, batch_size, mesh)
  )


def compile_batches(
  function: Callable[[Any, jax.Array], Any],
  values: Any,
  shape: Sequence[int],
  batch_size: int,
  mesh: jax.sharding.Mesh,
) -> Callable[[np.ndarray], tuple[Any, float]]:
  """`compile_system` of any function.

  Args:
    function: (values, images) -> tree of arrays with an entry for each image.
    values: a tree of arrays.
    shape: (H, W, C) of an image.
    batch_size: images at a time; rounded up to a multiple of the devices.
    mesh: devices that share a batch, see `parallel.make_mesh`.

  Returns:
    as `compile_system`, with what `function` returns.
  """
  devices = mesh.shape['data']
  size = -(-batch_size // devices) * devices
  images = jax.ShapeDtypeStruct(
    (size, *shape), np.float32, sharding=parallel.over_data(mesh)
  )
  values = jax.device_put(values, parallel.replicated(mesh))
  with jax.set_mesh(mesh):
    program = jax.jit(function).lower(values, images).compile()

  def run(batch):
    n = len(batch)
    padded = np.concatenate([batch, np.repeat(batch[-1:], size - n, 0)])
    start = time.perf_counter()
    out = program(values, jax.device_put(padded, images.sharding))
    out = jax.tree.map(np.asarray, out)
    seconds = (time.perf_counter() - start) / size
    return jax.tree.map(lambda x: x[:n], out), seconds

  return run


def resize_probabilities(
  probabilities: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
  """Resizes bilinearly, with antialiasing where the size shrinks.

  Args:
    probabilities: float32 [h, w, K].
    size: (H, W).

  Returns:
    float32 [H, W, K].
  """
  planes = [_resize_plane(plane, size) for plane in _planes(probabilities)]
  return np.stack(planes, -1)


def label_at(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Returns the likeliest class at another size, uint8 [H, W].

  It is the arg-max of `resize_probabilities`, one class in memory at a time.
  """
  if probabilities.shape[:2] == tuple(size):
    return probabilities.argmax(-1).astype(np.uint8)
  label = np.zeros(size, np.uint8)
  best = np.full(size, -np.inf, np.float32)
  for k, plane in enumerate(_planes(probabilities)):
    plane = _resize_plane(plane, size)
    better = plane > best
    label[better], best[better] = k, plane[better]
  return label


def label_image(
  probabilities: np.ndarray, shape: tuple[int, int], config
) -> np.ndarray:
  """Returns the labels of a whole image, uint8 [H, W].

  Args:
    probabilities: float32 [h, w, K] of what `to_input` showed of it.
    shape: (H, W) of the image.
    config: the run's; `data.resolution`, `data.width` and `data.fit` are read.

  Returns:
    class ids; 255 (void) where the networks saw nothing ('crop').
  """
  place = fit.size(config.data), config.data.fit
  label = label_at(probabilities, fit.region(shape, *place)[2:])
  return fit.undo(label, shape, *place, image_files.VOID)


def to_input(image: np.ndarray, config) -> np.ndarray:
  """Makes uint8 [H, W, C] what networks see: float32 [h, w, C] in [-1, 1]."""
  return transforms.normalise(
    fit.image(image, fit.size(config.data), config.data.fit)
  )


def predict_images(
  trained: workdir.Trained,
  images: Sequence[np.ndarray],
  stage: str | None = None,
  refine: bool = True,
  batch_size: int | None = None,
  crf: CRF | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Labels images in memory; a second call of the same size starts at once.

  Args:
    trained: from `jaxseg.workdir.load`.
    images: uint8 [H, W] or [H, W, 1, 3 or 4] each (alpha is ignored), of any
      size.
    stage: see `choose`.
    refine: use test-time optimisation where the method has it.
    batch_size: default: config.eval.batch_size, or fewer for fewer images.
    crf: settings of a dense CRF that follows, such as `CRF()`; None: none.

  Returns:
    For each image (class ids uint8 [H, W], probabilities float32 [H, W, K]);
    255 and 1/K where the networks saw nothing (`data.fit` is 'crop').

  Raises:
    TypeError: an image that is not uint8.
    UserError: see `choose`; an image that the CRF's lattice has no room for.
  """
  for image in images:
    if np.asarray(image).dtype != np.uint8:
      raise TypeError(f'images are uint8, found {np.asarray(image).dtype}')
  if not len(images):
    return []
  config = trained.config
  place = fit.size(config.data), config.data.fit
  batch_size = batch_size or min(config.eval.batch_size, len(images))
  system = choose(trained, stage, refine, crf)
  run = compile_system(system, config, batch_size)
  results = []
  for i in range(0, len(images), batch_size):
    chunk = [np.asarray(image) for image in images[i : i + batch_size]]
    inputs = [
      to_input(
        image_files.to_channels(
          image if image.ndim == 2 else image[..., :3], config.data.channels
        ),
        config,
      )
      for image in chunk
    ]
    probabilities = run(np.stack(inputs))[0].probabilities
    for image, p in zip(chunk, probabilities, strict=True):
      shape = image.shape[:2]
      full = resize_probabilities(p, fit.region(shape, *place)[2:])
      label = full.argmax(-1).astype(np.uint8)
      results.append(
        (
          fit.undo(label, shape, *place, image_files.VOID),
          fit.undo(full, shape, *place, 1 / full.shape[-1]),
        )
      )
  return results


def _mesh(data):
  """The training's mesh, or what this machine has instead of it."""
  devices = jax.local_devices()
  data = data if 0 < data <= len(devices) else -1
  return parallel.make_mesh(data, devices=devices)


def _planes(probabilities):
  return np.moveaxis(np.asarray(probabilities, np.float32), -1, 0)


def _resize_plane(plane, size):
  if plane.shape == tuple(size):
    return plane
  image = Image.fromarray(np.ascontiguousarray(plane))
  return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))

"""Keys of torchvision's state dicts, and the paths of these arrays here."""

from collections.abc import Iterator

from jaxseg.nets.torchvision_names import layers


def names(backbone: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
  """Yields every array of an encoder.

  Args:
    backbone: one of BACKBONES.

  Yields:
    (key of torchvision's state dict, path of Flax with its collection, order of
    the file's axes that Flax expects).
  """
  for layer in layers(backbone):
    key, name = layer.norm_key, layer.norm_name
    yield f'{layer.key}.weight', f'params/{layer.name}/kernel', (2, 3, 1, 0)
    if layer.bias:
      yield f'{layer.key}.bias', f'params/{layer.name}/bias', (0,)
    if key:
      yield f'{key}.weight', f'params/{name}/scale', (0,)
      yield f'{key}.bias', f'params/{name}/bias', (0,)
      yield f'{key}.running_mean', f'batch_stats/{name}/mean', (0,)
      yield f'{key}.running_var', f'batch_stats/{name}/var', (0,)

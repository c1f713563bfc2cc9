"""EBT of pictures in its authors' formulation, and DiT, in plain PyTorch, with this package's parameters.

The energy's gradient is taken with a graph (`create_graph`), which the loss differentiates a second time; attention is
products and a softmax, the one kernel of PyTorch that has a second derivative. DiT has the fused kernel. Eager mode.
Only `tools.bench --suite=image --torch` imports this.
"""

import numpy as np
import torch
from torch.nn import functional as F

from ebt_jax.models import patches

NORM_EPS = 1e-6


def to_torch(tree):
  """Leaves that are differentiated."""
  if isinstance(tree, dict):
    return {name: to_torch(value) for name, value in tree.items()}
  return torch.tensor(np.array(tree), requires_grad=True)


def leaves(tree):
  return [leaf for v in tree.values() for leaf in leaves(v)] if isinstance(tree, dict) else [tree]


def linear(x, weight):
  return F.linear(x, weight["kernel"].T, weight.get("bias"))


def normed(x):
  return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS)


def products(q, k, v):
  return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def tokens(params, x, condition, image, heads, attend):
  """The patches of pictures `[b, h, w, c]` after the last block; `condition` `[b or 1, 1, d]`."""
  b, h, w, c = x.shape
  p, n = image.patch, image.side
  x = x.reshape(b, n, p, n, p, c).transpose(2, 3).reshape(b, n * n, p * p * c)
  x = linear(x, params["patches"])
  x = x + torch.as_tensor(patches.positions(n, x.shape[-1]), dtype=x.dtype)
  condition = F.silu(condition)

  def split(y):
    return y.reshape(b, n * n, heads, -1).transpose(1, 2)

  layers = params["layers"]
  for i in range(len(layers["modulation"]["kernel"])):

    def at(tree, i=i):
      return {name: at(v, i) if isinstance(v, dict) else v[i] for name, v in tree.items()}

    layer = at(layers)
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = linear(condition, layer["modulation"]).chunk(6, -1)
    y, w = normed(x) * (1 + scale_a) + shift_a, layer["attention"]
    y = attend(*(split(linear(y, w[name])) for name in "qkv"))
    x = x + gate_a * linear(y.transpose(1, 2).reshape(x.shape), w["o"])
    y, w = normed(x) * (1 + scale_f) + shift_f, layer["ffn"]
    x = x + gate_f * linear(F.gelu(linear(y, w["up"]), approximate="tanh"), w["down"])
  return x


def head(params, x, condition):
  shift, scale = linear(F.silu(condition), params["head_modulation"]).chunk(2, -1)
  return linear(normed(x) * (1 + scale) + shift, params["head"])


def energies(params, x, image, heads):
  """`[b]`, means over patches."""
  condition = params["condition"]["embedding"][:1, None]
  return head(params, tokens(params, x, condition, image, heads, products), condition).mean((1, 2))


def ebt_loss(params, step_size, clean, noised, image, heads, steps):
  """Smooth L1, the mean over steps and pictures; every step starts without a derivative."""
  x, total = noised, 0.0
  for _ in range(steps):
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(energies(params, x, image, heads).sum(), x, create_graph=True)
    x = x - step_size * slope
    total = total + F.smooth_l1_loss(x, clean)
  return total / steps


def denoiser(params, x, time, image, heads):
  """What DiT says of each patch, `[b, s, o]`, at times `[b]`."""
  half = params["time"]["up"]["kernel"].shape[0] // 2
  frequency = torch.exp(-np.log(10000.0) * torch.arange(half, dtype=x.dtype) / half)
  angle = time[:, None].to(x.dtype) * frequency
  features = torch.cat([angle.cos(), angle.sin()], -1)
  condition = linear(F.silu(linear(features, params["time"]["up"])), params["time"]["down"])[:, None]
  return head(params, tokens(params, x, condition, image, heads, F.scaled_dot_product_attention), condition)


def calls(config, params, thinks: bool, steps: int = 1):
  """A function that computes one training step: loss and gradients of a batch of random pictures.

  Args:
    params: of the same model in this package.
    thinks: EBT with `steps` thinking steps; else DiT, whose loss is that of the noise alone.
  """
  image, heads = config.image, config.model.heads
  weights = to_torch(params["model"])
  learnt = leaves(weights)
  size = torch.tensor(config.thinking.step_size, requires_grad=True)
  clean = torch.rand(config.train.batch_size, image.size, image.size, image.channels) * 2 - 1

  def call():
    noise = torch.randn_like(clean)
    noised = 0.95 * clean + 0.32 * noise  # as at level 0.1
    if thinks:
      loss = ebt_loss(weights, size, clean, noised, image, heads, steps)
      torch.autograd.grad(loss, [*learnt, size])
      return
    answer = denoiser(weights, noised, torch.randint(0, 200, clean.shape[:1]), image, heads)
    half = answer.shape[-1] // 2
    torch.autograd.grad(F.mse_loss(answer[..., :half], noise.reshape(answer[..., :half].shape)), learnt)

  return call

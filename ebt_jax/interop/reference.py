"""Reads models of the authors' PyTorch code: their parameter names, arrays and option names.

This file is for text, and for what video shares with it; `load` leaves image models to `reference_images`.

Known differences from that code, all of which leave every energy and gradient as it is unless said otherwise:
  * Linear weights are transposed to `[in, out]`; layers are stacked along a first axis.
  * Rotary pairs are (j, j + k/2) here and neighbours there, so rows of wq and wk are reordered within each head.
  * `ebt_norm=ebm_backwards_norm` rescales gradients so that they are no longer those of the energy: refused.
  * The learning rate of every group ends at its own `final_ratio`; theirs ends the step size's group at the floor of
    the others (`optimizer.schedule` takes a floor, so both can be had).
  * Their cosine rises again after its horizon; ours stays at the floor.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from ebt_jax.config import AuthorsConfig, Config, ConfigError, DataConfig, ModelConfig, ThinkingConfig
from ebt_jax.interop import reference_images, reference_video
from ebt_jax.interop.nested import nested

_LAYER = {
  "attention.wq.weight": "attention/q/kernel",
  "attention.wk.weight": "attention/k/kernel",
  "attention.wv.weight": "attention/v/kernel",
  "attention.wo.weight": "attention/o/kernel",
  "feed_forward.w1.weight": "ffn/gate/kernel",
  "feed_forward.w3.weight": "ffn/up/kernel",
  "feed_forward.w2.weight": "ffn/down/kernel",
  "attention_norm.weight": "attention_norm/scale",
  "attention_norm.bias": "attention_norm/bias",
  "attention_norm.alpha": "attention_norm/slope",
  "ffn_norm.weight": "ffn_norm/scale",
  "ffn_norm.bias": "ffn_norm/bias",
  "ffn_norm.alpha": "ffn_norm/slope",
  "adaLN_modulation.1.weight": "modulation/kernel",
  "adaLN_modulation.1.bias": "modulation/bias",
}
_WHOLE = {
  "alpha": "thinking/step_size",
  "langevin_dynamics_noise_std": "thinking/noise",
  **reference_video.WHOLE,
  "embeddings.weight": "model/embed/embedding",
  "vocab_to_embed.weight": "model/to_embed/kernel",
  "output.weight": "model/output/kernel",
  "transformer.norm.weight": "model/norm/scale",
  "transformer.norm.bias": "model/norm/bias",
  "transformer.norm.alpha": "model/norm/slope",
  "transformer.time_embeddings.weight": "model/time/embedding",
  "transformer.final_layer.weight": "model/head/kernel",
  "transformer.final_layer.linear.weight": "model/head/kernel",
  "transformer.final_layer.adaLN_modulation.1.weight": "model/head_modulation/kernel",
  "transformer.final_layer.adaLN_modulation.1.bias": "model/head_modulation/bias",
}


def load(arrays: Mapping[str, np.ndarray], **hyperparameters) -> tuple[ModelConfig, dict]:
  """The authors' parameters as ours.

  Args:
    arrays: their `state_dict` of a text, image or video model, as numpy arrays.
    hyperparameters: their option names (`ebt_type`, `multiheaded_attention_heads`, ...).

  Returns:
    The architecture and `{"model": ..., "thinking": ...}` (no `thinking` for Transformer++), float types kept.

  Raises:
    ConfigError: a parameter that no such model of theirs has, one that is missing, or an option we do not have.
  """
  if reference_images.is_image(arrays):
    config = reference_images.model_config(arrays, **hyperparameters)
    return config, reference_images.convert(arrays, config.layers)
  config = model_config(arrays, **hyperparameters)
  return config, convert(arrays, config.layers, config.heads)


def config_of(arrays: Mapping[str, np.ndarray], **hyperparameters) -> tuple[Config, dict]:
  """The config of the task that a model of theirs answers, and the parameters; see `load`.

  Raises:
    ConfigError: see `load`.
    KeyError: an option is missing.
  """
  h = hyperparameters
  model, params = load(arrays, **h)
  if reference_images.is_image(arrays):
    config = Config(task="image", model=model, image=reference_images.image_config(arrays, **h))
    if model.kind == "dit":
      return config, params
    authors = AuthorsConfig(eval_noise=not h.get("no_langevin_during_eval", False))
    return dataclasses.replace(
      config, thinking=dataclasses.replace(thinking_config(**h), start="input", authors=authors)
    ), params
  data = DataConfig(context_length=h["context_length"])
  thinking = thinking_config(**h) if model.kind == "ebt" else ThinkingConfig()
  if reference_video.is_video(arrays):
    thinking = reference_video.thinking(thinking) if model.kind == "ebt" else thinking
    video = reference_video.video_config(arrays)
    return Config(task="video", model=model, data=data, thinking=thinking, video=video), params
  return Config(model=model, data=data, thinking=thinking), params


def convert(arrays: Mapping[str, np.ndarray], layers: int, heads: int) -> dict:
  """Renames, transposes, reorders and stacks; linear in the arrays, so it maps gradients too."""
  flat: dict[str, Any] = {}
  stacks: dict[str, list] = {}
  for name, array in arrays.items():
    array = np.asarray(array)
    if name.startswith(reference_video.ENCODER):
      continue
    if name in _WHOLE:
      target = _WHOLE[name]
      # their vocab_to_embed is [width, vocabulary]; embeddings are tables already
      transpose = array.ndim == 2 and target.endswith("kernel")
      flat[target] = array.T if transpose else array
      continue
    parts = name.split(".", 3)
    if parts[:2] != ["transformer", "layers"] or len(parts) < 4 or parts[3] not in _LAYER:
      raise ConfigError(f"{name}: not a parameter of the authors' text and video models; are these others?")
    if parts[3] in ("attention.wq.weight", "attention.wk.weight"):
      array = _halves(array, heads)
    if array.ndim == 2:
      array = array.T
    stacks.setdefault(f"model/layers/{_LAYER[parts[3]]}", [None] * layers)[int(parts[2])] = array
  tree = nested(flat, stacks)
  tree.setdefault("model", {}).setdefault("norm", {})
  return tree


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
  """Rows of each head from neighbouring pairs to halves."""
  out, width = weight.shape
  return weight.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def model_config(arrays: Mapping[str, np.ndarray], **h) -> ModelConfig:
  """The architecture that the arrays and options describe."""
  vocab = len(arrays.get("embeddings.weight", ()))
  width = arrays["transformer.layers.0.attention.wq.weight"].shape[1]
  layers = 1 + max(int(n.split(".")[2]) for n in arrays if n.startswith("transformer.layers."))
  if h.get("ebt_norm", "rms") == "ebm_backwards_norm":
    raise ConfigError("ebt_norm=ebm_backwards_norm: its slope is not the gradient of an energy; not supported")
  is_transformer = "output.weight" in arrays
  # the norm and activation options exist in the time_embed variant alone
  optional = not is_transformer and h.get("ebt_type") == "time_embed"
  multiplier = h.get("ffn_dim_multiplier")
  return ModelConfig(
    kind="transformer" if is_transformer else "ebt",
    size="",
    layers=layers,
    heads=h["multiheaded_attention_heads"],
    width=width,
    variant=h.get("ebt_type", "default"),
    vocab_size=vocab,
    ffn_multiplier=1.0 if multiplier is None else float(multiplier),
    norm=h.get("ebt_norm", "rms") if optional else "rms",
    activation=h.get("ebt_act_func", "silu") if optional else "silu",
    dyt_scale=h.get("dyt_alpha_init", 0.5),
    embedder="tied" if h.get("vocab_to_embed_uses_prob_dist") and not is_transformer else "linear",
    init="he" if h.get("weight_initialization_method") == "he" else "xavier",
    init_gain=h.get("weight_initialization_gain", 1.0),
  )


def thinking_config(**h) -> ThinkingConfig:
  """The inner optimisation that their options describe."""
  landscapes, extra = h["mcmc_num_steps"], h.get("randomize_mcmc_num_steps", 0)
  truncate, detach = h.get("truncate_mcmc", False), not h.get("no_mcmc_detach", False)
  if not h.get("normalize_initial_condition", False):
    normalize = "never"
  else:
    normalize = "first" if h.get("normalize_initial_condition_only_first_step") else "every"
  starts = {"random_noise": "noise", "zeros": "zeros", "most_recent_embedding": "input"}
  start = starts[h.get("denoising_initial_condition", "random_noise")]
  return ThinkingConfig(
    steps=landscapes + extra,
    landscapes=landscapes,
    step_size=h["mcmc_step_size"],
    learn_step_size=h.get("mcmc_step_size_learnable", False),
    step_size_lr_multiplier=h.get("mcmc_step_size_lr_multiplier", 1.0),
    random_step_size=h.get("randomize_mcmc_step_size_scale", 1.0),
    random_steps_min=(h.get("randomize_mcmc_num_steps_min", 0) or 1) if extra else 0,
    random_steps_of="final" if h.get("randomize_mcmc_num_steps_final_landscape") else "every",
    noise=h.get("langevin_dynamics_noise", 0.0),
    learn_noise=h.get("langevin_dynamics_noise_learnable", False),
    gradient="last" if truncate else "each" if detach else "unrolled",
    step_size_path=not detach,
    start=start,
    start_scale=h.get("gaussian_random_noise_scaling", 1.0),
    authors=AuthorsConfig(
      eval_noise=True,
      normalize=normalize,
      clip_gradient=h.get("clamp_futures_grad_max_change", 0.0) if h.get("clamp_futures_grad") else 0.0,
      clip_candidate=h.get("absolute_clamp", 0.0),
      sharpen=h.get("sharpen_predicted_distribution", 0.0),
      soften_targets=h.get("soften_target_prob_dist", 0.0),
      contrastive=h.get("contrastive_loss_coeff", 0.0) if h.get("contrastive_loss") else 0.0,
    ),
  )

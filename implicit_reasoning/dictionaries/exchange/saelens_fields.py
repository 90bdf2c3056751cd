"""Convert a `cfg.json` of SAELens 3 to 6 to the fields of SAELens 6.

Up to version 5, the field `activation_fn_str` (`activation_fn` in the oldest files) contains the
activation function, and `activation_fn_kwargs` contains k. From version 6 on, the field
`architecture` determines the activation function. Checkpoints that SAELens saves during training
also have fields about training.

Source: SAELens, sae_lens/saes/sae.py and loading/pretrained_sae_loaders.py
(`handle_pre_6_0_config`); for versions 3 to 5, sae_lens/sae.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from implicit_reasoning.errors import InputError
from implicit_reasoning.model.exchange.fields import check_config

AUTOENCODERS = ("standard", "gated", "topk", "jumprelu")
"""SAELens's names of the supported architectures of autoencoders."""

TRANSCODERS = {
    ("standard", False): "transcoder",
    ("jumprelu", False): "jumprelu_transcoder",
    ("standard", True): "skip_transcoder",
    ("jumprelu", True): "jumprelu_skip_transcoder",
}
"""SAELens's names of transcoders. A key is (activation function, whether there is a skip)."""

_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "hook_point_layer": "hook_layer",
    "activation_fn_str": "activation_fn",
}

_OPTIONAL = {
    "architecture": str,
    "activation_fn": str,
    "activation_fn_kwargs": dict | None,
    "apply_b_dec_to_input": bool,
    "finetuning_scaling_factor": bool,
    "rescale_acts_by_decoder_norm": bool,
    "k": int,
    "d_out": int,
    "metadata": dict,
    "hook_name": str,
}

_ABOUT = (
    # The model, site and data that the dictionary was trained on.
    *("model_name", "model_class_name", "model_from_pretrained_kwargs", "hook_layer"),
    *("hook_head_index", "hook_name_out", "hook_head_index_out", "hook_layer_out"),
    *("hf_hook_name", "hf_hook_name_out", "context_size", "prepend_bos", "seqpos_slice"),
    *("exclude_special_tokens", "dataset_path", "dataset_trust_remote_code", "neuronpedia_id"),
    *("sae_lens_version", "sae_lens_training_version"),
)
_HARMLESS = (
    *_ABOUT,
    # Device and precision.
    *("dtype", "device"),
    # Losses, schedules and initialization, which are used in training only.
    *("l1_coefficient", "l1_warm_up_steps", "lp_norm", "use_ghost_grads", "mse_loss_normalization"),
    *("scale_sparsity_penalty_by_decoder_norm", "noise_scale", "normalize_sae_decoder"),
    *("init_encoder_as_decoder_transpose", "decoder_orthogonal_init", "decoder_heuristic_init"),
    *("decoder_heuristic_init_norm", "decoder_init_norm", "b_dec_init_method"),
    *("jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode"),
    *("jumprelu_tanh_scale", "jumprelu_ste_to_input", "pre_act_loss_coefficient"),
    *("l0_coefficient", "l0_warm_up_steps", "target_l0", "aux_loss_coefficient"),
    "use_sparse_activations",
)


def read_config(config: Any, where: str | os.PathLike[str]) -> tuple[dict[str, Any], dict]:
    """Convert a config to the fields of SAELens 6, with default values for absent fields.

    Args:
      config: the parsed content of `cfg.json`.
      where: path of the file, which error messages state.

    Returns:
      `(config, metadata)`. The converted config has the fields `architecture`, `d_in`, `d_sae`,
      `d_out`, `k`, `apply_b_dec_to_input`, `finetuning_scaling_factor` and
      `rescale_acts_by_decoder_norm`. `k` is 0 unless the architecture is `topk`. Absent fields have
      SAELens's default values. `metadata` has the metadata of the
      config. Configs of versions 3 to 5 have none. For them, `metadata` instead has those fields of
      the config that describe the origin of the dictionary.

    Raises:
      InputError: a field is missing or unknown, or has an unsupported type or value.
    """
    renamed = _renamed(config, where) if isinstance(config, dict) else config
    check_config(
        renamed,
        where,
        what="dictionary",
        numbers=("d_in", "d_sae"),
        optional=_OPTIONAL,
        harmless=_HARMLESS,
        # Configs of version 3 have false or null for "none".
        only={
            "normalize_activations": ("none", False, None),
            "reshape_activations": ("none", None),
        },
    )
    for name in ("d_in", "d_sae"):
        if renamed[name] < 1:
            raise InputError(f"{where}: {name} is {renamed[name]}; it must be at least 1")
    if "reshape_activations" not in renamed and renamed.get("hook_name", "").endswith("_z"):
        raise InputError(
            f"{where}: hook_name = {renamed['hook_name']!r} is not supported; it must be a site "
            "without a head axis"
        )
    read = {
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "rescale_acts_by_decoder_norm": False,
        **renamed,
    }
    read["architecture"] = _architecture(renamed, where)
    read["k"] = _k(renamed, where) if read["architecture"] == "topk" else 0
    read["d_out"] = _d_out(read, where)
    if read["rescale_acts_by_decoder_norm"] and read["architecture"] != "topk":
        raise InputError(
            f"{where}: rescale_acts_by_decoder_norm is true and architecture is "
            f"{read['architecture']!r}; only the architecture 'topk' supports true"
        )
    about = {name: value for name, value in renamed.items() if name in ("hook_name", *_ABOUT)}
    return read, renamed.get("metadata", about)


def _renamed(config: Mapping[str, Any], where: str | os.PathLike[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        new = _OLD_NAMES.get(name, name)
        if new in found and found[new] != value:
            raise InputError(
                f"{where} gives {new} twice, by an old and a new name, with the different values "
                f"{found[new]!r} and {value!r}; remove one of them"
            )
        found[new] = value
    return found


def _architecture(config: Mapping[str, Any], where: str | os.PathLike[str]) -> str:
    """Return the architecture. Up to version 5, the activation function also determines it."""
    name, function = config.get("architecture", "standard"), config.get("activation_fn")
    if "architecture" not in config and function is None:
        raise InputError(
            f"{where} is not a SAELens config: it must have architecture or activation_fn_str"
        )
    if function is None:
        function = "topk" if name == "topk" else "relu"
    if name == "standard" and function == "topk":
        name = "topk"
    if function != ("topk" if name == "topk" else "relu"):
        good = {"topk": "'topk'", "standard": "'relu' or 'topk'"}.get(name, "'relu'")
        raise InputError(
            f"{where}: activation_fn_str = {function!r} is not supported with architecture = "
            f"{name!r}; it must be {good}"
        )
    if name not in (*AUTOENCODERS, *TRANSCODERS.values()):
        raise InputError(
            f"{where}: architecture = {name!r} is not supported; it must be one of "
            f"{', '.join((*AUTOENCODERS, *TRANSCODERS.values()))}"
        )
    allowed = {"k"} if name == "topk" else set()
    if strange := sorted(set(config.get("activation_fn_kwargs") or {}) - allowed):
        raise InputError(
            f"{where}: activation_fn_kwargs contains {', '.join(strange)}; supported keys are "
            f"{', '.join(allowed) or 'none'}"
        )
    if name != "topk" and config.get("k"):
        raise InputError(
            f"{where}: k is {config['k']!r} and architecture is {name!r}; remove k, which only "
            "the architecture 'topk' uses"
        )
    return str(name)


def _k(config: Mapping[str, Any], where: str | os.PathLike[str]) -> int:
    stated = [config["k"]] if "k" in config else []
    kwargs = config.get("activation_fn_kwargs") or {}
    stated += [kwargs["k"]] if "k" in kwargs else []
    whole = [k for k in stated if isinstance(k, int) and not isinstance(k, bool)]
    if len(set(whole)) != 1 or len(whole) != len(stated) or not 1 <= whole[0] <= config["d_sae"]:
        raise InputError(
            f"{where}: k is {' and '.join(map(repr, stated)) or 'missing'}; k or "
            f"activation_fn_kwargs must give one whole number from 1 to d_sae = {config['d_sae']}"
        )
    return int(whole[0])


def _d_out(config: Mapping[str, Any], where: str | os.PathLike[str]) -> int:
    if config["architecture"] in AUTOENCODERS:
        if config.get("d_out", config["d_in"]) != config["d_in"]:
            raise InputError(
                f"{where}: d_out is {config['d_out']}; d_out of an autoencoder must equal d_in = "
                f"{config['d_in']}"
            )
        return int(config["d_in"])
    if config.get("d_out", 0) < 1:
        raise InputError(
            f"{where}: d_out is {config.get('d_out', 'missing')}; d_out of a transcoder must be at "
            "least 1"
        )
    return int(config["d_out"])

"""A model in a file of this package, loaded by TransformerLens 4."""

import json

from safetensors.torch import load_file
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint


def bridge_of(case):
    """Load `<case>/ours.safetensors`; TransformerLens 4 converts its keys itself."""
    config = TransformerBridgeConfig.from_dict(json.loads((case / "ours.json").read_text()))
    model = TransformerBridge.boot_native(config)
    state = convert_tl_checkpoint(load_file(case / "ours.safetensors"), config)
    model.load_state_dict(state, strict=True)
    return model

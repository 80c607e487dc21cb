"""Where RVC loads its content encoder: here a HuBERT that ``transformers`` computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import HubertModel


class Hubert(nn.Module):
    """What RVC calls of fairseq's model: features of one layer, and v1's projection.

    Args:
        folder: a HuBERT model as ``transformers`` saves it, with ``final_proj`` among its weights.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model: Any = HubertModel.from_pretrained(str(folder), local_files_only=True)
        weights = load_file(str(folder / "model.safetensors"))
        outputs, inputs = weights["final_proj.weight"].shape
        self.final_proj = nn.Linear(inputs, outputs)
        self.final_proj.load_state_dict({name: weights[f"final_proj.{name}"] for name in ("weight", "bias")})

    def extract_features(
        self, source: Tensor, padding_mask: Tensor, output_layer: int
    ) -> tuple[Tensor, Tensor]:
        """Layer ``output_layer``, counted from 1, ``[batch, frames, width]``, and the mask as it came."""
        if output_layer == self.model.config.num_hidden_layers:
            return self.model(source).last_hidden_state, padding_mask
        return self.model(source, output_hidden_states=True).hidden_states[output_layer], padding_mask


def load_model_ensemble_and_task(
    filenames: Sequence[str], suffix: str = ""
) -> tuple[list[Hubert], None, None]:
    """The model of the first path, which is a folder here."""
    assert not suffix
    return [Hubert(Path(filenames[0]))], None, None

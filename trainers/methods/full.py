"""Fine-tuning of the model's own weights. With class images it is DreamBooth (Ruiz et al. 2022, arXiv:2208.12242)."""
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..artifacts.checkpoint import PRECISIONS, change, save_checkpoint
from ..errors import UserError
from ..families.protocol import Family
from ..optimization.parameter_group import ParameterGroup
from ..reports import Saved
from ..spec import BaseModelSpec, FullSpec, RunSpec
from ..spec.blocks import covers
from .protocol import Parts, chosen_encoders, large_encoder_notes, trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Full:
    kind = "full"

    def __init__(self, spec: FullSpec, learning_rate: float):
        self.spec, self.learning_rate = spec, learning_rate
        self.trains_text = spec.text_encoder_learning_rate > 0
        self.requires = frozenset({"full"} | ({"text_encoder"} if self.trains_text else set()))
        self.zero_terminal = False

    def trained_encoders(self, family: Family, base: BaseModelSpec) -> frozenset[str]:
        return chosen_encoders(family, base, self.spec.train_t5) if self.trains_text else frozenset()

    def hidden_words(self) -> tuple[str, ...]:
        return ()

    def trains_base(self) -> bool:
        return True

    def check(self, family: Family, spec: RunSpec) -> list[str]:
        blocks = family.block_names(spec.base)
        unknown = [name for name in self.spec.frozen_blocks if not any(covers(name, block) for block in blocks)]
        if unknown:
            raise UserError(f"frozen_blocks names {', '.join(unknown)}, which {spec.base.name!r} does not have. Its blocks "
                            f"are {', '.join(blocks)}; down and up mean all of a side.")
        if all(self._frozen(block) for block in blocks):
            raise UserError("frozen_blocks freezes every block, so nothing of the denoiser would learn. Leave at least one "
                            "out.")
        self.zero_terminal = spec.objective.zero_terminal_snr
        return large_encoder_notes(family, spec.base, self.spec.train_t5, self.trains_text)

    def _frozen(self, block: str) -> bool:
        return any(covers(name, block) for name in self.spec.frozen_blocks)

    def attach(self, parts: Parts, seed: int) -> list[ParameterGroup]:
        unread = frozenset(parts.family.unread_layers(parts.denoiser))
        for name, parameter in parts.denoiser.named_parameters():
            learns = name.rpartition(".")[0] not in unread and not self._frozen(parts.family.block_of(name))
            parameter.requires_grad_(learns)
        groups = [ParameterGroup("denoiser", self.learning_rate, trainable(parts.denoiser))]
        for name, encoder in self._encoders(parts).items():
            encoder.requires_grad_(True)
            reached = reached_by(parts.family.encode_with(parts.text, name, [""]).tensors.values())
            for parameter in encoder.parameters():
                parameter.requires_grad_(parameter in reached)
            groups.append(ParameterGroup(name, self.spec.text_encoder_learning_rate, trainable(encoder)))
        return groups

    def _encoders(self, parts: Parts) -> "dict[str, PreTrainedModel]":
        return parts.encoders(self.trained_encoders(parts.family, parts.base))

    def regularizer(self) -> None:
        return None

    def after_step(self, step: int):
        pass

    def save(self, parts: Parts, folder: Path, name: str, metadata: Mapping[str, str]) -> Saved:
        family, base, dtype = parts.family, parts.base, PRECISIONS[self.spec.file_precision]
        encoders = self._encoders(parts)
        entries = family.checkpoint_entries(base, parts.denoiser, encoders, dtype, self.zero_terminal)
        files = save_checkpoint(folder, name, entries, {
            "format": "pt", **metadata, **family.size_metadata(base)}, self.spec.shard_size,
            family.checkpoint_kind(base, self.trains_text))
        note = family.prediction_note(base, parts.denoiser)
        norm, relative = change(family.trained_and_base(base, parts.denoiser, encoders), dtype)
        return Saved(files=files, keys=len(entries), change_norm=norm, relative_change=relative,
                     notes=(note,) if note else ())


def reached_by(outputs: Iterable[Tensor]) -> set[nn.Parameter]:
    """The parameters that outputs depend on, found in the graph that autograd keeps: SDXL, for example, reads no more
    than the first text encoder's last but one layer, and what is behind it gets no gradient."""
    found: set[nn.Parameter] = set()
    seen, waiting = set(), [each.grad_fn for each in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter):
            found.add(variable)
        waiting.extend(each for each, _ in node.next_functions)
    return found

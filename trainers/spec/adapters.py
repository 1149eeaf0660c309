"""The kinds of adapters that can be trained. What each of them is stands in two files of its name: artifacts/adapters/
has what files store, methods/adapters/ has how peft puts it beside a layer."""
from dataclasses import dataclass


@dataclass(frozen=True)
class Adapter:
    title: str
    up_and_down: bool = False
    """Whether it has the two factors of a LoRA, for which LoRA+ and rank-stabilized scaling are made."""


ADAPTERS: dict[str, Adapter] = {
    "lora": Adapter("LoRA", up_and_down=True),
    "dora": Adapter("DoRA", up_and_down=True),
    "loha": Adapter("LoHa"),
    "lokr": Adapter("LoKr"),
}

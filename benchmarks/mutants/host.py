"""ComfyUI's side. These tests run ComfyUI's own code on small models."""
from .mutation import Mutation

PATCH, STACK = "nodes/host/stack_patch.py", "nodes/host/stack.py"
EFFECTS = "host/test_stack_effects.py"

MUTATIONS = [
    Mutation("LoRAs beyond a joined group are left out", PATCH,
             "        if ranks >= MAXIMUM_RANK or factor is factors[-1]:\n",
             "        if ranks >= MAXIMUM_RANK or factor is factors[0]:\n",
             "host/test_stack_effects.py::test_a_stack_is_the_chain_of_the_hosts_loaders"),
    Mutation("every LoRA of a weight has the first one's scale", PATCH,
             "for _, down, scale in group for _ in range(len(down))]",
             "for _, down, _ in group for scale in [group[0][2]] for _ in range(len(down))]",
             "host/test_stack_effects.py::test_a_stack_is_the_chain_of_the_hosts_loaders"),
    Mutation("DoRA scales by the norm of the base", PATCH,
             "norm = change.flatten(1).norm(dim=1)", "norm = weight.float().flatten(1).norm(dim=1)",
             "host/test_stack_effects.py::test_files_act_as_their_maker_meant"),
    Mutation("DoRA replaces what came before it", PATCH,
             "                change += weight\n",
             "                change += original_weights.get(key, weight) if original_weights else 0\n",
             "host/test_stack_effects.py::test_files_act_as_their_maker_meant"),
]

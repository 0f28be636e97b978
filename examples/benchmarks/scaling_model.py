"""What a training step needs on each GPU, as formulas: operations, bytes held, bytes moved.

They are of a Llama whose frozen weights are bfloat16 and whose adapters of rank r, on every linear layer, are float32,
under bfloat16 autocast with an attention kernel that keeps no scores. Bytes of activations are those that autograd
keeps, tensor by tensor; `tests/examples/test_scaling.py` counts them.
"""

from dataclasses import dataclass

HALF, SINGLE = 2, 4  # bytes of a number
GPUS_OF_A_NODE = 8
# Logits of a chunk of the loss on a GPU, see `token_losses_magnet.py`; their logarithms and gradient come beside them.
_CHUNK = 2**26


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama.

    Args:
        hidden, intermediate, layers, heads, key_value_heads, vocabulary (`int`): As in `LlamaConfig`; a head is
            `hidden / heads` wide, embeddings and LM head are two matrices.
        rank (`int`): Of the adapters.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int = 32_000
    rank: int = 16

    @property
    def head_width(self) -> int:
        """Width of an attention head."""
        return self.hidden // self.heads

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the linear layers of a block."""
        key = self.key_value_heads * self.head_width
        wide = self.intermediate
        return [(self.hidden, self.hidden), (self.hidden, key), (self.hidden, key), (self.hidden, self.hidden)] + [
            (self.hidden, wide),
            (self.hidden, wide),
            (wide, self.hidden),
        ]

    @property
    def block_weights(self) -> int:
        """Weights of the linear layers of a block."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def weights(self) -> int:
        """All weights but the adapters."""
        norms = self.hidden * (2 * self.layers + 1)
        return self.layers * self.block_weights + 2 * self.vocabulary * self.hidden + norms

    @property
    def adapter_weights(self) -> int:
        """Weights of all adapters."""
        return self.layers * self.rank * sum(inputs + outputs for inputs, outputs in self.linears)


def layer_bytes_of_token(shape: Shape, *, row: int) -> int:
    """Bytes that a block keeps of a token for the backward pass.

    Two norms keep their input in float32 and a factor. In half precision: two inputs of products and what attention
    takes and gives, of hidden size, keys and values too, for transformers repeats them for all heads where there is a
    mask; four tensors of the width of the MLP; what is between the two matrices of an adapter; and the mask, which
    each block converts from booleans. Attention keeps a number for each head.

    Args:
        shape (`Shape`): Of the model.
        row (`int`): Tokens that attend to each other.
    """
    wide = 6 * shape.hidden + 4 * shape.intermediate
    return SINGLE * (2 * shape.hidden + 2 + shape.heads) + HALF * (wide + 7 * shape.rank + row)


def operations(shape: Shape, *, tokens: float, row: float, labels: float = 0, checkpointing: bool = False) -> float:
    """Floating-point operations of a step.

    A frozen weight takes 4 a token, 2 each way; an adapter's 6; attention 12 for each pair of tokens and unit of
    width; checkpointing runs the blocks forward once more, which adds a half to the first and a third to the others.

    Args:
        shape (`Shape`): Of the model.
        tokens (`float`): Tokens of the step.
        row (`float`): Tokens that attend to each other.
        labels (`float`): Positions whose logits are needed.
        checkpointing (`bool`): Of the activations.
    """
    again = 1 if checkpointing else 0
    of_token = (4 + 2 * again) * shape.layers * shape.block_weights + (6 + 2 * again) * shape.adapter_weights
    scores = (12 + 4 * again) * shape.layers * shape.hidden * row
    return tokens * (of_token + scores) + 4 * labels * shape.vocabulary * shape.hidden


@dataclass(frozen=True)
class Memory:
    """Bytes on a GPU, at the height of a step; what the driver, the kernels and the allocator take comes on top."""

    weights: float
    adapters: float
    activations: float
    logits: float = 3 * SINGLE * _CHUNK

    @property
    def total(self) -> float:
        """All together."""
        return self.weights + self.adapters + self.activations + self.logits


def memory(
    shape: Shape, *, rows: float, row: int = 512, gpus: int = 1, sharded: bool = False, checkpointing: bool = False
) -> Memory:
    """Bytes on each GPU.

    Adapters have gradients and two moments of Adam. Sharded, each GPU has its part of everything, and at a time two
    blocks whole, one computed on and one under way, and the embeddings and the LM head. Activations are what all
    blocks keep, copies of the adapters in half precision, and what the end of the network holds while its gradient is
    taken, 20 bytes a token and unit of width. With checkpointing blocks keep their input alone; one at a time is
    computed again, and its MLP has three gradients more at its height. The two heights were found by counting.

    Args:
        shape (`Shape`): Of the model.
        rows (`float`): Of a step, on each GPU.
        row (`int`): Tokens of a row.
        gpus (`int`): That share the weights, where they do.
        sharded (`bool`): FSDP2; otherwise each GPU has all weights.
        checkpointing (`bool`): Keep the inputs of blocks alone.
    """
    parts = gpus if sharded else 1
    whole = 2 * shape.block_weights + 2 * shape.vocabulary * shape.hidden if sharded else 0
    kept = layer_bytes_of_token(shape, row=row)
    copies = HALF * shape.adapter_weights
    of_token = kept * shape.layers
    if checkpointing:
        of_token = HALF * shape.hidden * shape.layers + kept + 3 * HALF * shape.intermediate
        copies //= shape.layers
    return Memory(
        weights=HALF * (shape.weights / parts + whole),
        adapters=4 * SINGLE * shape.adapter_weights / parts,
        activations=rows * row * (of_token + 20 * shape.hidden) + copies,
    )


@dataclass(frozen=True)
class Gpu:
    """A GPU and its links.

    Args:
        flops (`float`): Dense bfloat16 operations a second.
        memory (`float`): Bytes.
        near, far (`float`): Bytes a second that it receives within a node and from others.
    """

    flops: float
    memory: float
    near: float
    far: float


def gathered_seconds(shape: Shape, gpu: Gpu, *, gpus: int) -> float:
    """Time in which sharded weights arrive, once forward and once backward; frozen ones send no gradients."""
    link = gpu.near if gpus <= GPUS_OF_A_NODE else gpu.far
    return 2 * HALF * shape.weights * (gpus - 1) / gpus / link


__all__ = [
    "GPUS_OF_A_NODE",
    "HALF",
    "SINGLE",
    "Gpu",
    "Memory",
    "Shape",
    "gathered_seconds",
    "layer_bytes_of_token",
    "memory",
    "operations",
]

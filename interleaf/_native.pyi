from collections.abc import Sequence
import enum


class DType(enum.Enum):
    float32 = 0

    bfloat16 = 1

    int8 = 2

class Rows(enum.Enum):
    TOKENS = 0

    LOGITS = 1

    SEQUENCES = 2

class Epilogue(enum.Enum):
    STORE = 0

    ADD = 1

    SILU_MUL = 2

    GELU_MUL = 3

class Memory:
    """Zeroed memory, aligned to a page, freed with the object."""

    def __init__(self, bytes: int) -> None: ...

    @property
    def address(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    def touch_ahead(self, used: int, ahead: int) -> None:
        """
        Have `ahead` bytes beyond those in use touched in the background, while the process computes nothing.
        """

class Format(enum.Enum):
    INT8 = 0

    GROUP4 = 1

    GROUP4_MIN = 2

    GROUP8 = 3

    GROUP8_MIN = 4

class PagedCache:
    """Addresses of one layer's keys and values."""

    def __init__(self, *, keys: int, values: int, key_scales: int, value_scales: int, block_stride: int, num_kv_heads: int, block_size: int, type: DType) -> None: ...

    @property
    def block_size(self) -> int: ...

ATTENTION_CHUNK: int = 256

MOST_SHARED: int = 1024

def attention_shared_bytes(num_heads: int, num_kv_heads: int, head_dim: int) -> int: ...

def attention_partials_bytes(num_threads: int, max_chunks: int, head_dim: int) -> int: ...

class Program:
    """A recorded forward pass."""

    def __init__(self) -> None: ...

    def __len__(self) -> int: ...

    def append(self, other: Program) -> None:
        """Goes on with the ops of another."""

    def names(self) -> list[str]: ...

    def embedding(self, *, ids: int, table: int, y: int, width: int, scale: float, table_type: DType) -> None: ...

    def take_rows(self, *, x: int, y: int, row_index: int, row_bytes: int) -> None: ...

    def rms_norm(self, *, rows: Rows, x: int, weight: int, y: int, width: int, eps: float, y_type: DType, add: bool) -> None: ...

    def soft_cap(self, *, rows: Rows, x: int, width: int, cap: float) -> None: ...

    def linear(self, *, rows: Rows, x: int, weight: int, bias: int, y: int, n: int, k: int, x_type: DType, weight_type: DType, y_type: DType, epilogue: Epilogue) -> None: ...

    def rotary_cache(self, *, qkv: int, q: int, cache: PagedCache, q_norm: int, k_norm: int, cos_sin: int, positions: int, slots: int, num_heads: int, head_dim: int, rotary_dim: int, eps: float, type: DType) -> None: ...

    def attention(self, *, q: int, y: int, cache: PagedCache, partials: int, shared_states: int, shared_chunks: int, shared_with: int, block_tables: int, block_table_stride: int, sequence_rows: int, query_start: int, context_lengths: int, num_heads: int, head_dim: int, max_chunks: int, window: int, scale: float, soft_cap: float, type: DType) -> None: ...

    def quantize(self, *, rows: Rows, x: int, y: int, scales: int, sums: int, table: QuantizedTable, x_type: DType) -> None: ...

    def linear_quantized(self, *, rows: Rows, x: int, x_scales: int, x_sums: int, table: QuantizedTable, bias: int, y: int, y_type: DType, epilogue: Epilogue) -> None: ...

    def embedding_quantized(self, *, ids: int, table: QuantizedTable, y: int, scale: float) -> None: ...

    def sample(self, *, logits: int, how: SamplingArrays, vocab_size: int) -> None: ...

class QuantizedTable:
    """Addresses of a quantized weight's parts."""

    def __init__(self, *, values: int, scales: int, compensation: int, group_scales: int, group_minima: int, n: int, k: int, format: Format) -> None: ...

    @property
    def k_padded(self) -> int: ...

    @property
    def groups(self) -> int: ...

class StepLayout:
    """Lays out a step in arrays whose addresses stay the same."""

    def __init__(self, *, token_ids: int, token_stride: int, num_tokens: int, num_computed_tokens: int, samples: int, given: Sequence[int], found: Sequence[int], tokens: int, inputs: Sequence[int], groups: Sequence[tuple[int, int, int]], block_size: int) -> None:
        """
        The lists hold addresses, in the order of the members in step_layout.h.
        """

    def write(self, num_sequences: int) -> tuple[int, int]:
        """Returns how many tokens the step has and how many it samples."""

    def advance(self, num_sequences: int, num_samples: int) -> list[int]:
        """
        Puts the results of a step without drafts into the batch; returns the tokens.
        """

class SamplingArrays:
    """Addresses of how each row is sampled, and of the tokens."""

    def __init__(self, *, temperatures: int, top_k: int, top_p: int, min_p: int, seeds: int, positions: int, tokens: int) -> None: ...

class Runtime:
    """The team of threads and the kernels of one instruction level."""

    def __init__(self, num_threads: int, level: str, scratch_bytes: int = 0) -> None: ...

    @property
    def level(self) -> str: ...

    @property
    def num_threads(self) -> int: ...

    def give_way_to(self, pid: int) -> None:
        """Leaves a core to this process while it computes; 0 is nobody."""

    def run(self, program: Program, num_tokens: int, num_logits: int, num_sequences: int) -> int:
        """Returns the nanoseconds it took."""

    def profile(self, program: Program, num_tokens: int, num_logits: int, num_sequences: int) -> list[int]:
        """Returns the nanoseconds of each op."""

    def read_probe(self, bytes: int) -> float:
        """Gigabytes a second of a plain read of so much memory by all threads."""

    def run_decode_steps(self, program: Program, layout: StepLayout, num_tokens: int, num_logits: int, num_sequences: int, how: SamplingArrays, num_steps: int, ending: Sequence[int]) -> tuple[list[list[int]], int]:
        """
        Returns the tokens of each step, and the nanoseconds that the program took. See decode_run.h.
        """

    def sample(self, logits: int, how: SamplingArrays, vocab_size: int, rows: int) -> int:
        """Returns the nanoseconds it took."""

    def logprobs(self, *, logits: int, rows: int, tokens: int, num_top: int, chosen_logprobs: int, chosen_ranks: int, top_tokens: int, top_logprobs: int, top_stride: int, vocab_size: int, count: int) -> int:
        """Returns the nanoseconds it took."""

    def pack_linear(self, *, sources: Sequence[tuple[int, str, int, int]], k: int, type: DType, interleaved: bool, destination: int) -> None:
        """Sources are (address, dtype, rows, bytes a row)."""

    def pack_quantized(self, *, sources: Sequence[tuple[int, str, int, int]], k: int, format: Format, interleaved: bool, to: QuantizedTable) -> None: ...

def quantized_bytes(n: int, k: int, format: Format, interleaved: bool) -> int: ...

def padded_columns(n: int, interleaved: bool) -> int: ...

def format_of(dtype: str) -> Format:
    """The format that holds a GGUF type in its own precision."""

def usable_levels() -> list[str]: ...

def merges_from_scores(pieces: Sequence[str], names: Sequence[str], scores: Sequence[float], usable: Sequence[bool]) -> list[tuple[int, int]]:
    """Pairs of ids, best first; see merges.h."""

def packed_bytes(n: int, k: int, type: DType, interleaved: bool) -> int: ...

def decode(dtype: str, data: int, count: int, destination: int) -> bool:
    """Values of any checkpoint dtype as float32; False if unknown."""

def dequantize_f32(type_name: str, source: int, num_values: int, destination: int) -> bool: ...

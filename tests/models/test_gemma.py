"""Gemma-3-270M from its GGUF file, where the cache has it (`interleaf models pull gemma-3-270m`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from interleaf import LLM, SamplingParams
from interleaf.host_tensor import HostTensor
from interleaf.loader import builtin
from interleaf.loader.checkpoint import open_checkpoint
from tests.models.transformers_peer import check_greedy

NAME = "gemma-3-270m"

pytestmark = pytest.mark.skipif(
    NAME not in {model.name for model in builtin.list_cached()}, reason="a file of 253 MB is not in the cache"
)
TEXT = (Path(__file__).parents[2] / "docs" / "numerics.md").read_text()


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(NAME, dtype="float32", max_model_len=2048, kv_cache_memory_bytes=1 << 28) as llm:
        yield llm


def test_logprobs_equal_transformers_beyond_the_window(llm: LLM) -> None:
    """Transformers gets the tensors that we read: what it makes of the file itself gives broken text."""
    import torch
    import transformers

    from interleaf.ops.reference import decode

    with open_checkpoint(NAME) as checkpoint:
        hf = {name: value for name, value in checkpoint.hf_config.items() if name not in ("rope_theta", "model_type")}
        peer = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**hf, attn_implementation="eager"))

        def weight(tensor: HostTensor) -> torch.Tensor:
            return decode(tensor) if tensor.dtype == "float32" else decode(tensor).bfloat16().float()

        state = {name: weight(tensor) for name, tensor in checkpoint.tensors.items()}
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        peer.load_state_dict(state)
    ids = llm.get_tokenizer().encode(TEXT)[:700]
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=1, prompt_logprobs=0, ignore_eos=True)
    for output in llm.generate([ids, ids[:9]], params, use_tqdm=False):
        check_greedy(peer.eval(), output)


def test_it_goes_on_with_sense() -> None:
    params = SamplingParams(temperature=0, max_tokens=8)
    prompts = ["The capital of Germany is Berlin. The capital of France is", "Red, orange, yellow, green,"]
    for quantization in (None, "gguf"):
        with LLM(NAME, quantization=quantization, max_model_len=512, kv_cache_memory_bytes=1 << 26) as llm:
            capital, colours = (output.outputs[0].text for output in llm.generate(prompts, params, use_tqdm=False))
        assert capital.startswith(" Paris") and " blue" in colours


def test_text_comes_back(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    samples = [TEXT, "a  b\n\n\n c\t\td", " leading", "日本語 naïve 😀 <b>x</b>", "def f():\n    return 1\n"]
    for text in samples:
        ids = tokenizer.encode(text)
        assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids, skip_special_tokens=True) == text
    capital = tokenizer.encode("The capital of France is\n\n", add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(capital) == ["The", "▁capital", "▁of", "▁France", "▁is", "\n\n"]
    assert int(np.max(tokenizer.encode(TEXT))) < 262144

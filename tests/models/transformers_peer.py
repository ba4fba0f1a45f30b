"""Transformers as the independent judge of our logits."""

from __future__ import annotations

from pathlib import Path

import torch

from interleaf import RequestOutput


def load_peer(path: Path) -> torch.nn.Module:
    """The checkpoint's bf16 weights in float32 arithmetic, attention spelled out."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    directory = path.parent if where else path
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, attn_implementation="eager", **where
    )
    # Transformers refuses `model.float()` of a dequantized GGUF file, though its weights are plain by then.
    torch.nn.Module.float(model).eval()
    for module in model.modules():
        if hasattr(module, "scalar_embed_scale"):
            # It was rounded to bf16 when the model was made; float32 arithmetic scales by the float32 number.
            module.embed_scale.fill_(module.scalar_embed_scale)
    return model


def peer_logprobs(peer: torch.nn.Module, token_ids: list[int]) -> torch.Tensor:
    """float32 [tokens, V]: of the token that follows each."""
    with torch.inference_mode():
        return torch.log_softmax(peer(torch.tensor([token_ids])).logits[0].double(), dim=-1).float()


def check_greedy(peer: torch.nn.Module, output: RequestOutput, tolerance: float = 1e-3) -> None:
    """Every output token is the peer's choice, and every prompt and output logprob is the peer's."""
    prompt, tokens = output.prompt_token_ids, output.outputs[0].token_ids
    expected = peer_logprobs(peer, prompt + tokens)
    choices = expected[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert tokens == choices
    for place, logprobs in enumerate(output.outputs[0].logprobs or ()):
        for token, logprob in logprobs.items():
            assert abs(logprob.logprob - float(expected[len(prompt) - 1 + place, token])) < tolerance
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    for place, entry in enumerate(output.prompt_logprobs[1:]):
        assert prompt[place + 1] in entry
        for token, logprob in entry.items():
            assert abs(logprob.logprob - float(expected[place, token])) < tolerance

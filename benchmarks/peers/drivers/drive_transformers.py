"""Transformers' generate: batches of 64 prompts, left-padded; those of like length go together."""

from protocol import drive

BATCH = 64


def load(model, precision, threads):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, local_files_only=True).eval()
    network.generation_config.eos_token_id = None
    network.generation_config.pad_token_id = 0

    def generate(prompts, length, n):
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            output = network.generate(
                ids,
                attention_mask=mask,
                do_sample=n > 1,
                num_return_sequences=n,
                max_new_tokens=length,
                min_new_tokens=length,
            )
        assert output.shape[1] == width + length

    def prepare(job):
        def run():
            order = sorted(range(len(job["prompts"])), key=lambda i: job["output_lens"][i])
            size = max(1, BATCH // job["n"])
            for first in range(0, len(order), size):
                batch = order[first : first + size]
                generate([job["prompts"][i] for i in batch], max(job["output_lens"][i] for i in batch), job["n"])
            return job["n"] * sum(job["output_lens"])

        return run

    return prepare


drive(load)

"""interleaf, offline."""

from protocol import drive

QUANTIZATION = {"bf16": None, "int8": "int8", "int4": "gguf"}


def load(model, precision, threads):
    from interleaf import LLM, SamplingParams

    llm = LLM(model, quantization=QUANTIZATION[precision], threads=threads, max_model_len=8192)

    def prepare(job):
        temperature = 0.0 if job["n"] == 1 else 1.0
        params = [
            SamplingParams(n=job["n"], temperature=temperature, ignore_eos=True, max_tokens=length, detokenize=False)
            for length in job["output_lens"]
        ]
        prompts = [{"prompt_token_ids": prompt} for prompt in job["prompts"]]

        def run():
            outputs = llm.generate(prompts, params, use_tqdm=False)
            return sum(len(one.token_ids) for output in outputs for one in output.outputs)

        return run

    return prepare


drive(load)

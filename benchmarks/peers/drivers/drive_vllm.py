"""vLLM's CPU backend, offline, with its defaults but for the context and the number of sequences."""

from protocol import drive


def load(model, precision, threads):
    from vllm import LLM, SamplingParams

    llm = LLM(model, dtype="bfloat16", max_model_len=8192, max_num_seqs=256)

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


if __name__ == "__main__":
    drive(load)

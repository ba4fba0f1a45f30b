"""OpenVINO GenAI's continuous batching."""

from protocol import drive


def load(model, precision, threads):
    import numpy as np
    import openvino
    import openvino_genai as genai

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = 256
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    # Told to compute in bf16 on a CPU that does not have it, it fails at the first request.
    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16" if has_bf16 else "f32"}
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", properties)

    def config(job, length):
        made = genai.GenerationConfig()
        made.max_new_tokens = length
        made.ignore_eos = True
        made.apply_chat_template = False
        made.num_return_sequences = job["n"]
        made.do_sample = job["n"] > 1
        return made

    def prepare(job):
        prompts = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in job["prompts"]]
        configs = [config(job, length) for length in job["output_lens"]]

        def run():
            results = pipeline.generate(prompts, configs)
            return sum(len(tokens) for result in results for tokens in result.m_generation_ids)

        return run

    return prepare


drive(load)

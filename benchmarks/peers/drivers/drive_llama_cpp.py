"""llama.cpp through its C interface, batched as its own server does it: running sequences first, then prompts.

It is not charged for sampling: the next token is always the same one. A prefix that all prompts share, or a prompt
with several answers, is computed once and its cells are shared, which is the best that llama.cpp can do.
"""

import os
from pathlib import Path

import llama_cpp as api
from protocol import drive

NEXT_TOKEN = 2_000
MAX_BATCH = 2_048
MAX_PHYSICAL_BATCH = 512


def load(model, precision, threads):
    api.llama_backend_init()
    params = api.llama_model_default_params()
    params.use_extra_bufts = not has_amx()
    network = api.llama_model_load_from_file(os.fsencode(model), params)
    assert network, "llama.cpp refused the model"
    batch = api.llama_batch_init(MAX_BATCH, 0, 1)
    held = []

    def prepare(job):
        while held:
            api.llama_free(held.pop())
        run = Run(network, batch, threads, job)
        held.append(run.context)
        return run.run

    return prepare


class Run:
    """One job on a context of its own, large enough for all its sequences at once.

    Attributes:
        prefix: tokens that all prompts begin with; they lie in the last sequence.
        waiting: (rest of the prompt, output length) of each prompt that has not begun.
        prompts: [sequences, rest, position, output length] of each that is being computed.
        running: sequence -> [position, tokens left].
    """

    def __init__(self, network, batch, threads, job):
        self.batch = batch
        self.n = job["n"]
        self.prefix = common_prefix(job["prompts"])
        begin = len(self.prefix)
        self.waiting = [
            (prompt[begin:], length) for prompt, length in zip(job["prompts"], job["output_lens"], strict=True)
        ]
        self.prompts = []
        self.running = {}
        num_sequences = len(self.waiting) * self.n
        self.free = list(range(num_sequences))[::-1]
        self.prefix_sequence = num_sequences
        longest = max(len(rest) + length for rest, length in self.waiting)
        shares = bool(self.prefix) or self.n > 1
        total = begin + len(self.waiting) * self.n * longest if shares else num_sequences * -(-longest // 256) * 256
        self.context = self.new_context(network, threads, total, num_sequences + bool(self.prefix), shares)
        self.memory = api.llama_get_memory(self.context)

    @staticmethod
    def new_context(network, threads, num_cells, num_sequences, shares):
        params = api.llama_context_default_params()
        params.n_ctx = num_cells
        params.n_batch, params.n_ubatch = MAX_BATCH, MAX_PHYSICAL_BATCH
        params.n_seq_max = num_sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = shares
        context = api.llama_init_from_model(network, params)
        assert context, "llama.cpp refused the context"
        return context

    def run(self):
        self.compute_prefix()
        generated = 0
        while self.waiting or self.prompts or self.running:
            self.start_prompts()
            generated += self.step()
        return generated

    def compute_prefix(self):
        for first in range(0, len(self.prefix), MAX_BATCH):
            self.batch.n_tokens = 0
            for place, token in enumerate(self.prefix[first : first + MAX_BATCH], first):
                self.add(token, place, self.prefix_sequence, False)
            self.decode()

    def start_prompts(self):
        while self.waiting:
            rest, length = self.waiting.pop(0)
            sequences = [self.free.pop() for _ in range(self.n)]
            if self.prefix:
                api.llama_memory_seq_cp(self.memory, self.prefix_sequence, sequences[0], -1, -1)
            self.prompts.append([sequences, rest, len(self.prefix), length])

    def step(self):
        """One call of llama_decode; returns the tokens that it generated."""
        self.batch.n_tokens = 0
        for sequence, (position, _) in self.running.items():
            self.add(NEXT_TOKEN, position, sequence, True)
        complete = self.add_prompts()
        self.decode()
        generated = len(self.running)
        for sequence, state in list(self.running.items()):
            state[0] += 1
            state[1] -= 1
            if not state[1]:
                self.finish(sequence)
        for sequences, _, position, length in complete:
            generated += len(sequences)
            for sequence in sequences:
                if sequence != sequences[0]:
                    api.llama_memory_seq_cp(self.memory, sequences[0], sequence, -1, -1)
                if length > 1:
                    self.running[sequence] = [position, length - 1]
        return generated

    def add_prompts(self):
        """Fill the batch with prompts; returns those that it completes."""
        complete = []
        while self.prompts and self.batch.n_tokens < MAX_BATCH:
            entry = self.prompts[0]
            sequences, rest, position, _ = entry
            count = min(len(rest), MAX_BATCH - self.batch.n_tokens)
            for place in range(count):
                self.add(rest[place], position + place, sequences[0], place + 1 == len(rest))
            entry[1], entry[2] = rest[count:], position + count
            if not entry[1]:
                complete.append(self.prompts.pop(0))
        return complete

    def finish(self, sequence):
        del self.running[sequence]
        api.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def add(self, token, position, sequence, wants_logits):
        batch, place = self.batch, self.batch.n_tokens
        batch.token[place] = token
        batch.pos[place] = position
        batch.n_seq_id[place] = 1
        batch.seq_id[place][0] = sequence
        batch.logits[place] = wants_logits
        batch.n_tokens = place + 1

    def decode(self):
        status = api.llama_decode(self.context, self.batch)
        assert status == 0, f"llama_decode returned {status}"
        api.llama_synchronize(self.context)


def has_amx():
    """On such CPUs llama.cpp 0.3.36 of the Python package ends with a segmentation fault in its AMX weights buffers."""
    return " amx_int8" in Path("/proc/cpuinfo").read_text()


def common_prefix(prompts):
    """What several prompts begin with, less a last token that must be computed for its logits."""
    if len(prompts) == 1:
        return []
    shortest = min(prompts, key=len)
    for place, token in enumerate(shortest):
        if any(prompt[place] != token for prompt in prompts):
            return shortest[:place]
    return shortest[:-1]


drive(load)

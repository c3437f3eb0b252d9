"""V-pretraining in your own training loop. It adds only the lines that end in `# +`.

Run it: python examples/own_loop.py (seconds on a CPU). The model here is tiny and random. For a real one, write instead

    tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B")
    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", dtype=torch.float32).to("cuda")

and pass bf16=True to VPretraining. It needs text of your own, a few hundred verified pairs, and thousands of steps.
"""

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vpretrain import VPretraining, feedback_rows  # +
from vpretrain.language.config import DesignerConfig, ValueConfig  # +

torch.manual_seed(0)
STEPS, ACCUMULATION = 28, 2

# A character-level tokenizer, and an untrained model.
vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *"0123456789+= abcdefghijklmnopqrstuvwxyz"])}
characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
names = {"pad_token": "<pad>", "eos_token": "<eos>", "model_input_names": ["input_ids", "attention_mask"]}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, **names)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **special, **sizes))

# The stream: any text. Here half of it is sums.
texts = [f"{a} + {b} = {a + b}" if a % 2 else f"{b} letters for {a}" for a in range(30) for b in range(40)]
stream = DataLoader(
    [tokenizer(text + tokenizer.eos_token) for text in texts],
    batch_size=8,
    shuffle=True,
    collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

pairs = [(f"{a} + {b} =", f" {a + b}") for a in range(31, 99, 4) for b in range(3, 99, 7)]  # +
settings = {"designer": DesignerConfig(top_k=16), "value": ValueConfig(every_steps=2)}  # +
v = VPretraining(model, feedback_rows(pairs, tokenizer), **settings)  # +

model.train()
batches = iter(stream)
for step in range(STEPS):
    micro_batches = [next(batches) for _ in range(ACCUMULATION)]
    total = 0.0
    for loss in v.losses(step, micro_batches, optimizer=optimizer):  # + (was model(**batch).loss / ACCUMULATION)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    judged = f"  strength {v.record['strength']:.2f}" if "strength" in v.record else ""  # +
    print(f"step {step:2}  loss {total:.4f}  alpha {v.record['alpha']:.4f}{judged}")  # +

"""V-pretraining as a LightningModule: manual optimization, since a step's losses come one micro-batch at a time.

It needs pip install lightning. Run it: python examples/lightning_module.py (seconds on a CPU). The model here is tiny and
random. For a real one, write instead

    tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B")
    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", dtype=torch.float32)

and pass bf16=True to VPretraining; leave Lightning's own precision at 32, and take one device. It needs text of your own, a few
hundred verified pairs, and thousands of steps.
"""

import tempfile

import lightning
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import DataCollatorForLanguageModeling, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vpretrain import VPretraining, feedback_rows
from vpretrain.language.config import DesignerConfig, ValueConfig

STEPS, ACCUMULATION = 28, 2


class Steered(lightning.LightningModule):
    """A causal language model with V-pretraining; a batch holds the micro-batches of one optimizer step."""

    def __init__(self, model, feedback):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.feedback = model, feedback
        self.v = None

    def on_fit_start(self):
        """Attach V-pretraining when the model is on its device."""
        settings = {"designer": DesignerConfig(top_k=16), "value": ValueConfig(every_steps=2)}
        self.v = VPretraining(self.model, self.feedback, **settings)

    def training_step(self, batch, number):
        optimizer, step = self.optimizers(), self.global_step
        parts = zip(*(tensor.chunk(ACCUMULATION) for tensor in batch.values()), strict=True)
        micro_batches = [dict(zip(batch, part, strict=True)) for part in parts]
        progress = step / self.trainer.max_steps
        total = 0.0
        for loss in self.v.losses(step, micro_batches, optimizer=optimizer.optimizer, progress=progress):
            self.manual_backward(loss)
            total += loss.item()
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        optimizer.zero_grad()
        judged = f"  strength {self.v.record['strength']:.2f}" if "strength" in self.v.record else ""
        print(f"step {step:2}  loss {total:.4f}  alpha {self.v.record['alpha']:.4f}{judged}")

    def configure_optimizers(self):
        return torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.0)


lightning.seed_everything(0, verbose=False)

# A character-level tokenizer, and an untrained model.
vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *"0123456789+= abcdefghijklmnopqrstuvwxyz"])}
characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
characters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
names = {"pad_token": "<pad>", "eos_token": "<eos>", "model_input_names": ["input_ids", "attention_mask"]}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=characters, **names)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
special = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **special, **sizes)).train()

# The stream: any text. Here half of it is sums.
texts = [f"{a} + {b} = {a + b}" if a % 2 else f"{b} letters for {a}" for a in range(30) for b in range(40)]
rows = [tokenizer(text + tokenizer.eos_token) for text in texts]
collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)


def batch_of(rows):
    """A plain dictionary, which Lightning moves to the device."""
    return dict(collate(rows))


order = torch.Generator().manual_seed(0)
stream = DataLoader(rows, batch_size=8 * ACCUMULATION, shuffle=True, generator=order, collate_fn=batch_of)
pairs = [(f"{a} + {b} =", f" {a + b}") for a in range(31, 99, 4) for b in range(3, 99, 7)]

with tempfile.TemporaryDirectory() as directory:
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=STEPS,
        default_root_dir=directory,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Steered(model, feedback_rows(pairs, tokenizer)), stream)

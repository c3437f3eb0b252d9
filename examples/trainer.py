"""V-pretraining with transformers' Trainer: VPretrainTrainer, a feedback set, and the usual arguments.

Run it: python examples/trainer.py (seconds on a CPU). The model here is tiny and random. For a real one, write instead

    tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen2.5-0.5B")
    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", dtype=torch.float32)

and set bf16=True in the TrainingArguments. It needs text of your own, a few hundred verified pairs, and thousands of steps.
"""

import tempfile

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    TrainingArguments,
    set_seed,
)

from vpretrain import VPretrainTrainer, feedback_rows
from vpretrain.language.config import DesignerConfig, ValueConfig

set_seed(0)

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
rows = [tokenizer(text + tokenizer.eos_token) for text in texts]
pairs = [(f"{a} + {b} =", f" {a + b}") for a in range(31, 99, 4) for b in range(3, 99, 7)]

with tempfile.TemporaryDirectory() as directory:
    trainer = VPretrainTrainer(
        model,
        TrainingArguments(
            directory,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=1e-3,
            max_steps=28,
            logging_steps=4,
            save_steps=12,
            report_to="none",
            use_cpu=True,  # leave it out if you have a GPU
            dataloader_pin_memory=False,
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        train_dataset=rows[:-80],
        eval_dataset=rows[-80:],
        feedback_dataset=feedback_rows(pairs, tokenizer),
        designer=DesignerConfig(top_k=16),
        value=ValueConfig(every_steps=2),
    )
    trainer.train()
    print({"eval_loss": trainer.evaluate()["eval_loss"]})

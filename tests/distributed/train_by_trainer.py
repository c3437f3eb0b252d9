"""`VPretrainTrainer` as a script that torchrun can start; writes what it logged, and where it ended, to a file."""

import json
import sys

import torch
from models import tiny_model
from transformers import TrainingArguments, default_data_collator

from vpretrain.language.adapters.trainer import VPretrainTrainer
from vpretrain.language.config import DesignerConfig, ValueConfig

output, processes = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(61, (count, 16), generator=generator)
    # Rows with unequal numbers of targets: a mean of the processes' means would be another loss.
    labels = ids.masked_fill(torch.arange(16) < torch.randint(8, (count, 1), generator=generator), -100)
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


trainer = VPretrainTrainer(
    tiny_model("llama"),
    TrainingArguments(
        output, per_device_train_batch_size=8 // processes, gradient_accumulation_steps=2, max_steps=6, logging_steps=1,
        save_steps=3, report_to="none", use_cpu=True, dataloader_pin_memory=False, learning_rate=1e-3, disable_tqdm=True,
        ddp_backend="gloo" if processes > 1 else None,
    ),
    data_collator=default_data_collator,
    train_dataset=rows(96, 1),
    feedback_dataset=rows(12, 2),
    feedback_batch_size=4,
    arm="v-paper",
    designer=DesignerConfig(hidden_size=16, layers=1, heads=2, top_k=8, lr=1e-2),
    # As many rows as a micro-batch has: the first four of one process are not the first two of each of two.
    value=ValueConfig(every_steps=2, batch_size=8, length=16),
)  # fmt: skip
trainer.train(resume_from_checkpoint=f"{output}/checkpoint-3" if "--resume" in sys.argv else None)
if trainer.is_world_process_zero():
    log = [
        {k: v for k, v in entry.items() if k in ("loss", "grad_norm", "value", "alpha")}
        for entry in trainer.state.log_history
    ]
    theta = torch.cat([p.detach().flatten() for p in trainer.vpretraining.learner.model.parameters()]).tolist()
    phi = torch.cat([p.detach().flatten() for p in trainer.vpretraining.designer.parameters()]).tolist()
    with open(f"{output}/end.json", "w") as file:
        json.dump({"log": log[:-1], "theta": theta, "phi": phi}, file)

"""V-pretraining in a self-distillation loop in the manner of DINOv3 or lightly-train.

Images get global and local crops, the loss is DINO's at class tokens and iBOT's at hidden patches, AdamW has groups of
parameters, learning rate and weight decay follow schedules, the head's last layer waits, and CUDA gets bf16, fused updates and
pinned memory.

It needs pip install "vpretrain[vision]". Run it: python examples/vision_loop.py (seconds on a CPU). The model here is tiny and
random, and images and labels are generated. The loss rises at first, as the running centre of the teacher's outputs starts at
0, and targets around the true centre are harder. For a real model write instead

    model = DINOv3ViTModel.from_pretrained("facebook/dinov3-vitb16-pretrain-lvd1689m", dtype=torch.float32)
    feedback = FeedbackConfig(
        heads=[SourceConfig(ade20k="ADEChallengeData2016", limit=2000)],
        meta=[SourceConfig(ade20k="ADEChallengeData2016", skip=2000, limit=2000)],
        depth=0,
    )

with crops of 224 and 96 pixels by your own transforms, and load the head that your training has into `v.learner.module.head`
and `v.learner.teacher.head`: under a random head the features of a released backbone are lost.
"""

import itertools
import math
import random

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from vpretrain import VisionPretraining, view_batch
from vpretrain.vision.config import DinoConfig, FeedbackConfig, SourceConfig, ValueConfig
from vpretrain.vision.data.scenes import rendered

torch.manual_seed(0)
random.seed(0)
CUDA = torch.cuda.is_available()
STEPS, ACCUMULATION, IMAGES, LOG_EVERY = 20, 2, 8, 2
GLOBAL_SIZE, GLOBAL_SCALE, LOCAL_SIZE, LOCAL_SCALE, LOCAL_VIEWS = 32, (0.32, 1.0), 16, (0.05, 0.32), 4
PEAK_LR, WARMUP_STEPS, WEIGHT_DECAY, FROZEN_STEPS = 1e-3, 2, (0.04, 0.4), 2

# An untrained backbone, and images: renderings of toys.
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
model = DINOv3ViTModel(DINOv3ViTConfig(**sizes, patch_size=8, image_size=32, num_register_tokens=2))
model = model.to("cuda" if CUDA else "cpu")
images = list(rendered(seed=1, scenes=32, cameras=1, size=48)["image_N3HW"].float() / 255)

# The feedback: images with a class and a depth for every pixel.
feedback = FeedbackConfig(
    heads=[SourceConfig(scenes=8, seed=2, size=32)],
    meta=[SourceConfig(scenes=8, seed=3, size=32)],
    size=32,
    depth=1.0,
    batch_size=4,
    first_head_steps=5,
)


def crop(image, size, scale):
    """A random square of the image, mirrored in half of the cases, in another brightness."""
    side = round(image.shape[-1] * math.sqrt(random.uniform(*scale)))
    top, left = (random.randint(0, image.shape[-1] - side) for _ in range(2))
    part = image[None, :, top : top + side, left : left + side]
    part = part.flip(-1) if random.random() < 0.5 else part
    part = F.interpolate(part, (size, size), mode="bilinear", align_corners=False)[0]
    return (part * random.uniform(0.6, 1.4)).clamp(0, 1)


def views(images, count, size, scale):
    """Crops, view by view."""
    return torch.stack([torch.stack([crop(image, size, scale) for image in images]) for _ in range(count)])


def multi_crop(images):
    """Two global crops of every image, and the local ones."""
    return views(images, 2, GLOBAL_SIZE, GLOBAL_SCALE), views(images, LOCAL_VIEWS, LOCAL_SIZE, LOCAL_SCALE)


def micro_batches():
    """Micro-batches of crops, epoch after epoch. The seed of each draws its hidden patches."""
    loader = DataLoader(images, IMAGES, shuffle=True, drop_last=True, collate_fn=multi_crop, pin_memory=CUDA)
    epochs = itertools.chain.from_iterable(itertools.repeat(loader))
    for seed, (global_crops, local_crops) in enumerate(epochs):
        yield view_batch(global_crops, local_crops, seed=seed)


def cosine(start, end, progress):
    """From start to end along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


dino = DinoConfig(outputs=64, hidden=64, bottleneck=32, patch_loss=1.0)
value = ValueConfig(every_steps=2, subset="last-2", strength=1.0)  # the default, auto, needs more steps to judge itself
v = VisionPretraining(model, feedback, dino=dino, value=value, bf16=CUDA)
matrices = [p for p in v.parameters() if p.ndim > 1]
vectors = [p for p in v.parameters() if p.ndim == 1]
groups = [{"params": matrices, "decays": True}, {"params": vectors, "weight_decay": 0.0, "decays": False}]
optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, fused=True)
stream = micro_batches()

for step in range(STEPS):
    progress = step / STEPS
    for group in optimizer.param_groups:
        group["lr"] = min((step + 1) / WARMUP_STEPS, 1) * cosine(PEAK_LR, 0.0, progress)
        if group["decays"]:
            group["weight_decay"] = cosine(*WEIGHT_DECAY, progress)
    batches = list(itertools.islice(stream, ACCUMULATION))
    total = torch.zeros((), device=model.device)
    for loss in v.losses(step, batches, optimizer=optimizer, progress=progress):
        loss.backward()
        total += loss.detach()
    if step < FROZEN_STEPS:
        v.learner.module.head.last.grad = None
    torch.nn.utils.clip_grad_norm_(v.parameters(), 3.0)
    optimizer.step()
    optimizer.zero_grad()
    v.after_step((step + 1) / STEPS)  # the teacher's momentum and its centres
    if step % LOG_EVERY == 0:
        print(f"step {step:2}  loss {total.item():.4f}  tilt {v.record['tilt']:.4f}")

"""What the paper's arm and its control have in place of the recipe's settings, which were chosen for `v`."""

# It was tuned with these: depth, of which its g_down mostly consists, and few images often, with heads that go on learning.
PAPER = (
    "feedback.batch_size=8", "feedback.depth=1", "feedback.refit_biases=false", "feedback.head_steps=1",
    "value.every_steps=3",
)  # fmt: skip
WITH_PAPER = ":".join(["", *PAPER])  # after an arm's name

"""The terms of a report, each explained where it first occurs."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping

# By term: what finds it in the text of a page, and the explanation.
TERMS: Mapping[str, tuple[str, str]] = {
    "arm": (r"\barms?\b", "what a run trains on: V-pretraining, or a control in its place"),
    "step-0": (r"\bstep-0\b|untouched learner", "the untouched learner, before any training"),
    "answer NLL": (r"\banswer NLL|\bheld-out answers",
                   "negative log-likelihood of the solutions, given their problems, in nats per token; lower is better"),
    "tempered": (r"\btempered\b|one temperature per arm",
                 "answer NLL after the best temperature for all logits of an arm: without what calibration alone changes"),
    "top-1": (r"\btop-1\b|likeliest tokens", "the fraction of the answers' tokens that the model finds likeliest"),
    "Pass@1": (r"\bPass@1\b", "the fraction of the problems that greedy decoding solves"),
    "Pass@k": (r"\bPass@k\b", "the fraction of the problems that at least one of k sampled solutions solves"),
    "retention NLL": (r"\bretention NLL|\bretention_nll\b",
                      "NLL on text unrelated to the feedback; it rises with what was forgotten"),
    "mIoU": (r"\bmIoU\b", "overlap of predicted and true regions over their union, mean over classes; higher is better"),
    "RMSE": (r"\bRMSE\b", "root of the mean squared error of the depth, in metres; lower is better"),
    "AbsRel": (r"\bAbsRel\b", "mean error of the depth as a fraction of the true depth; lower is better"),
    "delta_1": (r"\bdelta_1\b", "the fraction of the pixels whose depth is within 25 % of the true one"),
    "mAP": (r"\bmAP\b", "mean average precision of retrieval; higher is better"),
    "95 % interval": (r"95 % interval|\[95 %\]|95 % intervals",
                      "what the data do not contradict; if it contains 0, or p is above 0.05, the difference may be chance"),
    "paired": (r"\bpaired\b", "differences are taken case by case and seed by seed, then averaged"),
    "p": (r"\bp = ", "the chance of such a difference without any effect, corrected (Holm) for how many are reported"),
    "seed": (r"\bseeds?\b", "the number that stream order, initial designer and dropout are drawn from"),
    "meta update": (r"\bmeta updates?\b", "the feedback gives a new direction, and any designer takes a step"),
    "feedback": (r"\bfeedback\b", "the small set of verified examples that steers the task and is never trained on"),
    "loss": (r"\btraining loss\b", "the loss of the task that the learner trains on, which differs between arms"),
    "alpha": (r"\balpha\b|α", "the gate: the target probability that is not on the true token; 0 is one-hot"),
    "mask": (r"\bmask\b", "what a designer in vision makes: white parts of a crop are kept sharp, black ones blurred"),
    "value": (r"\bvalue of the task\b|Value is", "how far the task agrees with the feedback: the alignment of their gradients"),
    "designer": (r"\bdesigner\b", "the small network that makes the task in arms such as v-paper"),
    "g_down": (r"\bg_down\b", "the gradient of the loss on the feedback, with respect to the learner"),
    "target": (r"\btargets\b", "what the learner is trained towards: a distribution over tokens, or the teacher's outputs"),
}  # fmt: skip


class Glossary:
    """Tells each term once. Names of arms, with their summaries, are further terms."""

    def __init__(self, arms: Mapping[str, str]) -> None:
        named = {name: (rf"(?<![\w-]){re.escape(name)}(?![\w-])", summary) for name, summary in arms.items()}
        self._left = {**TERMS, **named}

    def first(self, shown: str) -> list[tuple[str, str]]:
        """Return the terms, with explanations, that a piece of the page has and none before it, in the order in which they
        occur."""
        text = html.unescape(re.sub(r"<style.*?</style>|<script.*?</script>|<[^>]*>", " ", shown, flags=re.DOTALL))
        places = {}
        for term, (pattern, _) in self._left.items():
            if found := re.search(pattern, text):
                places[term] = found.start()
        return [(term, self._left.pop(term)[1]) for term in sorted(places, key=places.__getitem__)]

"""What counts as correct, and the figures of an evaluation against plain ones."""

from __future__ import annotations

import pytest
import torch
from models import tiny_model
from tokenizers import decoders
from torch.nn import functional as F
from worlds import recipe_data, tiny_recipe

from vpretrain.language.assemble import assemble, load_evaluation
from vpretrain.language.evaluation.solve import before_stop, final_answer, is_correct, pass_at_k, reference, solve
from vpretrain.language.model.learner import LanguageLearner
from vpretrain.recipe import parse_recipe


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2 = 4\n#### 4", "4"),
        ("#### 4\nQuestion: 3 + 3 #### 6", "4"),  # what the model makes up afterwards does not count
        ("So there are 1,200 apples and then 30.", "30"),
        ("it is\nBlue", "Blue"),
        ("", ""),
    ],
)
def test_the_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "truth", "correct"),
    [
        ("#### 1,200", "1200", True),
        ("#### 4.0", "4", True),
        ("#### $5", "5", True),
        ("#### 1/2", "0.5", True),
        ("#### -4", "4", False),
        ("#### 41", "4", False),
        ("#### blue", "Blue", True),
        ("no idea", "4", False),
        ("", "4", False),
        ("#### 1/0", "4", False),
        ("#### 3.1416", "3.1417", False),
        ("#### 1,000", "1e3", True),
        ("it is 2.5e-3", "0.0025", True),
        ("#### 1", "1e3", False),
        ("#### 5", "1e999", False),
        ("#### 1e999", "5", False),
        ("#### 42 apples", "42", True),
        ("#### $18", "$18", True),
        ("\\boxed{\\frac{3}{4}}", "0.75", True),
        ("#### -\\dfrac{3}{4}", "0.75", False),
        ("it is\nno", "yes", False),
        ("3 of 4 voted for it, so\nYes", "yes", True),
        ("it is 1,200, no more", "1200", True),
        ("so $\\frac{3}{4}$", "\\frac{6}{8}", True),  # from here on by math-verify
        ("#### (x+1)^2", "x^2 + 2x + 1", True),
        ("#### (x+1)^2", "x^2 + 2x + 2", False),
        ("the set \\boxed{\\{1, 2\\}}", "\\{2, 1\\}", True),
        ("\\boxed{1, -2}", "-2,1", True),
        ("#### 12", "1,2", False),
        ("#### 2", "x^2 + 3", False),
    ],
)
def test_answers_are_compared_as_what_they_are(text, truth, correct):
    assert is_correct(text, truth) is correct


def test_a_tolerance_is_absolute_and_rounding_is_always_allowed():
    assert is_correct("#### 0.3339", "0.3333", within=1e-3)
    assert not is_correct("#### 0.3344", "0.3333", within=1e-3)
    assert not is_correct("#### 12346", "12345", within=1e-3)
    assert is_correct("#### 12345678", "12345679", within=1e-3)  # a millionth


def test_answer_nll_and_retention_are_those_of_a_plain_forward_pass(tmp_path, tokenizer):
    recipe = parse_recipe(recipe_data(tmp_path, tokenizer))
    model = tiny_model(vocabulary=max(61, len(tokenizer))).eval()
    evaluation = load_evaluation(recipe, tokenizer)
    figures = evaluation(LanguageLearner(model))
    for example, problem in zip(evaluation.problems, figures["problems"], strict=True):
        prompt = tokenizer(example.prompt)["input_ids"]
        ids = torch.tensor([*prompt, *tokenizer(example.response)["input_ids"], tokenizer.eos_token_id])[:48]
        with torch.no_grad():
            logits = model(ids[None]).logits[0]
        expected = F.cross_entropy(logits[len(prompt) - 1 : -1], ids[len(prompt) :])
        assert problem["nll"] == pytest.approx(float(expected), rel=1e-4)
        likeliest = logits[len(prompt) - 1 : -1].argmax(-1) == ids[len(prompt) :]
        assert problem["top_1"] == pytest.approx(float(likeliest.double().mean()))
    assert figures["answer_nll"] == pytest.approx(sum(p["nll"] for p in figures["problems"]) / 6)
    assert figures["answer_top_1"] == pytest.approx(sum(p["top_1"] for p in figures["problems"]) / 6)
    assert figures["answer_nll_tempered"] == pytest.approx(sum(p["nll_tempered"] for p in figures["problems"]) / 6)
    assert figures["retention_nll"] > 0
    assert [problem.get("solved") for problem in figures["problems"][2:]] == [None] * 4
    asked = list(zip(evaluation.problems, figures["problems"], strict=True))[:2]
    assert [problem["answer"] for _, problem in asked] == [reference(example) for example, _ in asked]
    assert [is_correct(problem["attempt"], problem["answer"]) for _, problem in asked] == [
        p["solved"] for _, p in asked
    ]
    assert all("attempt" not in problem for problem in figures["problems"][2:])


def test_a_learner_with_dropout_is_evaluated_without_it(tmp_path, tokenizer):
    evaluation = load_evaluation(parse_recipe(recipe_data(tmp_path, tokenizer)), tokenizer)
    learner = LanguageLearner(tiny_model("gpt2", vocabulary=max(61, len(tokenizer))))
    figures = evaluation(learner)
    assert learner.module.training
    assert evaluation(learner) == figures
    learner.module.eval()
    assert evaluation(learner) == figures


def test_domains_are_reported_apart(tmp_path, tokenizer):
    data = recipe_data(tmp_path, tokenizer)
    (source,) = data["evaluation"]["sources"]
    data["evaluation"]["sources"] = [source | {"limit": 3}, source | {"skip": 3, "domain": "more"}]
    recipe = parse_recipe(data)
    figures = load_evaluation(recipe, tokenizer)(LanguageLearner(tiny_model(vocabulary=max(61, len(tokenizer)))))
    assert set(figures["answer_nll_by_domain"]) == {"sums", "more"}


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer():
    import itertools

    correct, samples = [0, 1, 3, 4], 4
    ours = pass_at_k(correct, samples)
    assert list(ours) == ["1", "2", "4"]
    for k, value in ours.items():
        shares = []
        for c in correct:
            draws = list(itertools.combinations([True] * c + [False] * (samples - c), int(k)))
            shares.append(sum(map(any, draws)) / len(draws))
        assert value == pytest.approx(sum(shares) / len(shares))
    assert list(pass_at_k([3], 5)) == ["1", "2", "4"]


def test_whoever_waits_for_a_solution_hears_of_every_token(tmp_path, tokenizer):
    parts = assemble(tiny_recipe(tmp_path, tokenizer))
    heard, examples = [], load_evaluation(tiny_recipe(tmp_path, tokenizer), tokenizer).problems[:2]
    solve(parts.learner, tokenizer, examples, 5, done=heard.append)
    assert heard == pytest.approx([share / 5 for share in range(1, len(heard) + 1)])
    assert 1 <= len(heard) <= 5


def test_sampled_solutions_are_the_same_twice_and_leave_the_random_numbers_alone(tmp_path, tokenizer):
    recipe = tiny_recipe(tmp_path, tokenizer)
    config = recipe.evaluation.model_dump() | {"samples": 3, "pass_at_1_problems": 2, "max_new_tokens": 6}
    parts = assemble(tiny_recipe(tmp_path, tokenizer, evaluation=config))
    state = torch.get_rng_state()
    result = parts.evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    assert set(result["pass_at_k"]) == {"1", "2"}
    assert [("correct_samples" in problem) for problem in result["problems"]] == [True] * 2 + [False] * 4
    torch.manual_seed(5)
    assert parts.evaluate() == result


@pytest.mark.parametrize(
    ("text", "stop", "before"),
    [
        ("it is 4\nquestion: 3 + 3", ["\nquestion:"], "it is 4"),
        ("4\nproblem: 5\nquestion: 6", ["\nquestion:", "\nproblem:"], "4"),  # the first in the text, not in the list
        ("a question: 4", ["\nquestion:"], "a question: 4"),
        ("4\nquestion: 5", [], "4\nquestion: 5"),
        ("\nquestion: 5", ["\nquestion:"], ""),
    ],
)
def test_a_solution_ends_before_the_first_stop_string(text, stop, before):
    assert before_stop(text, stop) == before


@pytest.fixture
def scripted(tmp_path, tokenizer):
    """Solutions written beforehand, through transformers' own decoding: the learner may choose among one token only."""
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    recipe = tiny_recipe(tmp_path, tokenizer)
    learner, problems = assemble(recipe).learner, load_evaluation(recipe, tokenizer).problems
    generate = learner.generate

    def solved(scripts, **kwargs):
        ids = [tokenizer(script)["input_ids"] + [tokenizer.eos_token_id] for script in scripts]

        def generate_script(**arguments):
            start = arguments["input_ids"].shape[1]

            def force(ids_BT, scores_BV):
                only_BV = torch.full_like(scores_BV, -torch.inf)
                for row in range(len(ids_BT)):
                    script = ids[row // (len(ids_BT) // len(ids))]
                    only_BV[row, script[min(ids_BT.shape[1] - start, len(script) - 1)]] = 0.0
                return only_BV

            return generate(**arguments, logits_processor=[force])

        learner.generate = generate_script
        return solve(learner, tokenizer, problems[: len(scripts)], 60, **kwargs)

    return solved


RIGHT_THEN_WRONG = "the sum is 4.\nquestion: 3 + 3\n#### 7"
WRONG_THEN_RIGHT = "the sum is 7.\nquestion: 2 + 2\n#### 4"


@pytest.mark.parametrize("samples", [0, 2])
def test_a_solution_is_judged_by_what_stands_before_the_stop_string(scripted, samples):
    scripts = [RIGHT_THEN_WRONG, WRONG_THEN_RIGHT, "it is 4"]

    def correct(**kwargs):
        return [[is_correct(text, "4") for text in texts] for texts in scripted(scripts, samples=samples, **kwargs)]

    each = max(1, samples)
    assert correct(stop=["\nquestion:"]) == [[True] * each, [False] * each, [True] * each]
    assert correct(stop=["\nproblem:", "\nquestion:"]) == correct(stop=["\nquestion:"])
    assert correct() == [[False] * each, [True] * each, [True] * each]  # without one all of the text counts


def test_problems_of_a_batch_stop_each_by_itself(scripted):
    scripts = ["4.\nquestion: 3", "a longer solution which is 12.\nquestion: 3", "no stop string at all", "\nquestion:"]
    together = scripted(scripts, stop=["\nquestion:"])
    assert together == [scripted([script], stop=["\nquestion:"])[0] for script in scripts]
    assert together == [["4."], ["a longer solution which is 12."], ["no stop string at all"], [""]]


def test_decoding_ends_with_the_stop_string(scripted):
    for stop, tokens in ((["\nquestion:"], len("4.\nquestion:")), ([], len("4.\nquestion: 3 + 3") + 1)):
        heard = []
        scripted(["4.\nquestion: 3 + 3"], stop=stop, done=heard.append)
        assert heard == pytest.approx([number / 60 for number in range(1, tokens + 1)])


def test_an_evaluation_stops_where_its_recipe_says(tmp_path, tokenizer, monkeypatch):
    heard = []
    monkeypatch.setattr(
        "vpretrain.language.evaluation.evaluate.solve", lambda *_, stop, **kwargs: heard.append(stop) or [["4"]] * 2
    )
    for settings in ({}, {"stop": ["\n\n"]}, {"stop": []}):
        evaluation = recipe_data(tmp_path, tokenizer)["evaluation"] | settings
        assemble(tiny_recipe(tmp_path, tokenizer, evaluation=evaluation)).evaluate()
    assert heard == [["\nQuestion:", "\nProblem:"], ["\n\n"], []]

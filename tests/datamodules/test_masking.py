"""Masking: RoBERTa's shares, and randomness that is a function of the draw's bits alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from lightning_opt.datamodules._masking import Masking, _words

VOCABULARY = 50
SPECIAL = [0, 1, 2, 3, VOCABULARY - 1]
MASK = VOCABULARY - 1
ORDINARY = sorted(set(range(VOCABULARY)) - set(SPECIAL))
UNLIKELY = 1e-4  # p-values of statistics whose random numbers are the same in every run


def masking(probability: float = 0.15) -> Masking:
    return Masking(mask=MASK, special=SPECIAL, vocab_size=VOCABULARY, probability=probability)


def blocks(count: int, length: int = 128, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).choice(ORDINARY, (count, length)).astype(np.uint16)
    found[:, 0], found[:, -1], found[:, length // 2] = 0, 2, 2
    return found


def masked(count: int = 2000, **options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks, and their inputs and labels; bits of neighboring seeds, the hardest there are."""
    tokens = blocks(count, **options)
    batch = masking()(tokens, np.arange(count))
    return tokens, batch["input_ids"].numpy(), batch["labels"].numpy()


def test_words_are_those_of_splitmix64():
    """The same, one number at a time, in Python's integers."""

    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    assert mix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF  # its first output from seed 0
    bits = [0, 1, 2**62 - 1]
    first, second = _words(np.array(bits), 3)
    for row, b in enumerate(bits):
        steps = [mix((mix(b) + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(1, 7)]
        assert first[row].tolist() == steps[::2] and second[row].tolist() == steps[1::2]


def test_labels_are_the_tokens_where_something_is_predicted():
    tokens, inputs, labels = masked()
    chosen = labels != -100
    assert (labels[chosen] == tokens[chosen]).all()
    assert (inputs[~chosen] == tokens[~chosen]).all()


def test_batches_are_int64_and_leave_the_blocks_alone():
    tokens = blocks(4)
    before = tokens.copy()
    batch = masking()(tokens, np.arange(4))
    assert {name: value.dtype for name, value in batch.items()} == {
        "input_ids": torch.int64,
        "labels": torch.int64,
    }
    assert (tokens == before).all()


def test_special_tokens_are_neither_predicted_nor_drawn():
    tokens, inputs, labels = masked(5000)
    special = np.isin(tokens, SPECIAL)
    assert (labels[special] == -100).all() and (inputs[special] == tokens[special]).all()
    new = inputs[inputs != tokens]
    assert set(np.unique(new)) == {MASK, *ORDINARY}


def test_shares_are_those_of_the_paper():
    tokens, inputs, labels = masked(5000)
    ordinary = ~np.isin(tokens, SPECIAL)
    chosen = labels != -100
    total = ordinary.sum()
    assert _p([chosen.sum(), total - chosen.sum()], [0.15, 0.85]) > UNLIKELY
    hidden = (inputs == MASK) & chosen
    same = chosen & (inputs == tokens)
    # A token drawn at random is the token itself once in so many times.
    again = 0.1 / len(ORDINARY)
    counts = [hidden.sum(), (chosen & ~hidden & ~same).sum(), same.sum()]
    assert _p(counts, [0.8, 0.1 - again, 0.1 + again]) > UNLIKELY


def test_the_probability_is_the_one_asked_for():
    tokens = blocks(2000)
    batch = masking(0.4)(tokens, np.arange(2000))
    chosen = (batch["labels"] != -100).sum().item()
    total = (~np.isin(tokens, SPECIAL)).sum()
    assert _p([chosen, total - chosen], [0.4, 0.6]) > UNLIKELY


def test_random_tokens_are_uniform_and_do_not_depend_on_what_they_replace():
    tokens, inputs, labels = masked(20_000)
    random = (labels != -100) & (inputs != MASK) & (inputs != tokens)
    drawn, replaced = inputs[random], tokens[random]
    index = {token: place for place, token in enumerate(ORDINARY)}
    place, of = (np.array([index[t] for t in ids.tolist()]) for ids in (drawn, replaced))
    assert _p(np.bincount(place, minlength=45), np.full(45, 1 / 45)) > UNLIKELY
    # Their difference in the vocabulary is never 0 here, and else as likely to be any.
    shift = np.bincount((place - of) % 45, minlength=45)[1:]
    assert _p(shift, np.full(44, 1 / 44)) > UNLIKELY


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (0, 2), (1, 0), (2, 0), (1, 1)])
def test_choices_are_independent(rows: int, columns: int):
    """Of neighboring tokens, and of the same token under neighboring bits."""
    _, inputs, labels = masked(10_000)
    chosen = (labels != -100)[:, 1:63]
    hidden = (inputs == MASK)[:, 1:63]
    for events, share in ((chosen, 0.15), (hidden, 0.12)):
        one = events[: len(events) - rows, : 62 - columns]
        other = events[rows:, columns:]
        counts = [(one & other).sum(), (one ^ other).sum(), (~one & ~other).sum()]
        expected = [share**2, 2 * share * (1 - share), (1 - share) ** 2]
        assert _p(counts, expected) > UNLIKELY


def test_every_position_is_chosen_as_often():
    _, _, labels = masked(10_000)
    counts = (labels != -100).sum(axis=0)
    positions = np.delete(counts, [0, 64, 127])
    assert _p(positions, np.full(125, 1 / 125)) > UNLIKELY


def test_masks_are_a_function_of_the_bits_alone():
    tokens = blocks(8)
    bits = np.array([5, 6, 7, 8, 2**62 - 1, 0, 2**40, 5])
    together = masking()(tokens, bits)
    for row in range(8):
        alone = masking()(tokens[row : row + 1], bits[row : row + 1])
        for name in together:
            assert torch.equal(alone[name][0], together[name][row])
    same = masking()(tokens[[0, 0]], bits[[0, 7]])  # equal bits, in other places
    assert torch.equal(same["input_ids"][0], same["input_ids"][1])
    assert not torch.equal(*masking()(tokens[[0, 0]], np.array([0, 1]))["labels"])


def test_every_block_has_a_term():
    """Also where 15 % of two tokens is mostly none; of those it is either one."""
    tokens = blocks(4000, length=5)  # <s> token </s> token </s>
    labels = masking()(tokens, np.arange(4000))["labels"].numpy()
    found = (labels != -100).sum(axis=1)
    assert found.min() == 1
    both = 0.15**2
    assert _p([(found == 2).sum(), (found == 1).sum()], [both, 1 - both]) > UNLIKELY
    first = (labels[found == 1][:, 1] != -100).sum()
    assert _p([first, (found == 1).sum() - first], [0.5, 0.5]) > UNLIKELY


def test_what_becomes_of_the_only_choice_has_the_same_shares():
    tokens = blocks(20_000, length=4)
    tokens[:, 2] = 2  # <s> token </s> </s>
    inputs = masking()(tokens, np.arange(20_000))["input_ids"].numpy()[:, 1]
    hidden, same = (inputs == MASK).sum(), (inputs == tokens[:, 1]).sum()
    again = 0.1 / len(ORDINARY)
    counts = [hidden, 20_000 - hidden - same, same]
    assert _p(counts, [0.8, 0.1 - again, 0.1 + again]) > UNLIKELY


def test_a_block_of_special_tokens_has_nothing_to_predict():
    tokens = np.array([[0, 3, 3, 2]])
    batch = masking()(tokens, np.array([1]))
    assert (batch["labels"] == -100).all() and (batch["input_ids"].numpy() == tokens).all()


def _p(counts, shares) -> float:
    counts, shares = np.asarray(counts), np.asarray(shares)
    return chisquare(counts, counts.sum() * shares).pvalue
